from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from affect.core.schema import Modality
from affect.data.collate import Collator
from affect.data.dataset import TrainingSamples, open_datasets, query_tokens
from affect.data.prompts import NEEDS, load_prompts
from affect.data.sampling import Draw
from affect.features.store import FeatureError
from affect.models.llm import load_tokenizer


def samples(config, seed=0):
    return TrainingSamples(open_datasets(config, "train"), load_prompts(), query_tokens(config.model), seed)


def test_a_sample_is_a_function_of_seed_cycle_and_clip(tiny_world):
    first, again = (samples(tiny_world)[Draw(2, 5)] for _ in range(2))
    assert (first.prompt, first.answer) == (again.prompt, again.answer)
    texts = {samples(tiny_world)[Draw(2, cycle)].prompt for cycle in range(20)}
    assert len(texts) > 1  # both questions are asked and streams are dropped


def test_a_hybrid_asks_both_questions_half_and_half(tiny_world):
    data, book = samples(tiny_world), load_prompts()
    asked = [book.question("ovlabel") in data[Draw(i, cycle)].prompt for i in range(8) for cycle in range(50)]
    assert 0.4 < np.mean(asked) < 0.6


def relabelled(config, **columns):
    """The samples of the tiny world with other columns in its table."""
    section = config.datasets["toy"]
    rows = pd.read_csv(section.csv_path)
    rows.drop(columns=[name for name, cells in columns.items() if cells is None]).assign(
        **{name: cells for name, cells in columns.items() if cells is not None}
    ).to_csv(section.csv_path, index=False)
    return samples(config)


@pytest.mark.parametrize(
    ("settings", "columns", "message"),
    [
        (
            {},
            {"reason": None},
            r"data set toy: description needs the clips' description; .*clips\.csv: expected a column 'r",
        ),
        (
            {"label_type": "ovlabel"},
            {"openset": None},
            r"found name, subtitle, reason, split; name it in .*label_column",
        ),
        ({"label_type": "ovlabel"}, {"openset": "[]"}, "clip 'c0' of toy has no ovlabel.*\n(.*\n){4}… and 3 more"),
        ({"label_type": "onehot_w_candidates"}, {}, "data set toy: .*list them in candidate_labels"),
        (
            {"label_type": "onehot_w_candidates", "candidate_labels": ["happy", "calm"]},
            {},
            "clip 'c1' of toy has the label 'sad': expected one of happy, calm",
        ),
        ({"label_type": "valence"}, {"valence": 0.5}, "data set toy: valence: .* set valence_range"),
        (
            {"label_type": "valence", "valence_range": (-1.0, 1.0)},
            {"valence": 2},
            r"clip 'c0' of toy has the valence 2.0: expected -1.0 to 1.0",
        ),
        ({"label_type": "sentiment"}, {}, "sentiment needs the clips' valence; .*expected a column 'valence'"),
    ],
)
def test_what_training_would_ask_for_and_nobody_knows_is_said_before(tiny_world, settings, columns, message):
    for key, value in settings.items():
        setattr(tiny_world.datasets["toy"], key, value)
    with pytest.raises(ValueError, match=message):
        relabelled(tiny_world, **columns).check_answers()


def test_own_tables_may_ask_any_question(tiny_world):
    section, book = tiny_world.datasets["toy"], load_prompts()
    section.candidate_labels, section.valence_range = ["happy", "sad"], (-3.0, 3.0)
    for kind in NEEDS:
        section.label_type = kind
        data = relabelled(tiny_world, valence=-1.5)
        data.check_answers()
        sample = data[Draw(1, 0)]
        assert book.question(kind, data.datasets[0].choices) in sample.prompt
        assert sample.answer == book.answer(kind, sample.clip)


def test_prompts_that_cannot_fit_are_found_before_training(tiny_world, tiny_llm):
    data, tokenizer = samples(tiny_world), load_tokenizer(str(tiny_llm))
    data.check_prompts(Collator(tokenizer, 1000))
    with pytest.raises(ValueError, match="expected a prompt of at most 30 tokens"):
        data.check_prompts(Collator(tokenizer, 30))


def test_dropout_never_empties_a_sample(tiny_world):
    tiny_world.datasets["toy"].modality_dropout = 0.99
    data = samples(tiny_world)
    for cycle in range(20):
        assert sum(len(array) > 0 for array in data[Draw(0, cycle)].features.values()) >= 1


def test_a_description_speaks_of_what_the_sample_shows_only(tiny_world):
    section = tiny_world.datasets["toy"]
    section.label_type, section.modality_dropout = "description", 0.5
    data = relabelled(tiny_world, reason="The lips part. The voice is low. In the room, it is dark. He feels sad.")
    said = {"lips": ("face", "au"), "voice": ("audio",), "room": ("frame",)}
    for cycle in range(20):
        sample = data[Draw(0, cycle)]
        shown = {stream for stream, array in sample.features.items() if len(array)}
        for word, streams in said.items():
            assert (word in sample.answer) == any(stream in shown for stream in streams)
        assert sample.answer.startswith("The lips part. " if "lips" in sample.answer else ("The voice", "In", "He"))
        assert sample.answer.endswith("He feels sad.###")
    faceless = data[Draw(3, 0)]
    assert "lips" not in faceless.answer and "He feels sad." in faceless.answer


def test_dropout_takes_the_whole_face_away_often_enough_to_learn_from(tiny_world):
    """Pictures and action units are both gone from 7 samples in a hundred; each by itself, it would be one."""
    tiny_world.datasets["toy"].modality_dropout = 0.1
    data = samples(tiny_world)
    there = [{stream for stream, rows in data[Draw(0, cycle)].features.items() if len(rows)} for cycle in range(400)]
    faceless = np.mean([not each & {Modality.FACE, Modality.AU} for each in there])
    assert 0.04 < faceless < 0.11
    for stream in (Modality.FACE, Modality.AU, Modality.AUDIO):
        assert 0.06 < np.mean([stream not in each for each in there]) < 0.19


def test_a_clip_without_a_face_keeps_its_sound(tiny_world):
    features = open_datasets(tiny_world, "train")[0].features(3)
    assert len(features[Modality.FACE]) == 0
    assert features[Modality.AUDIO].shape == (8, 10)


def test_missing_features_are_found_before_training(tiny_world):
    dataset = open_datasets(tiny_world, "train")[0]
    for name in ("c1", "c5"):
        dataset.store.path(dataset.specs[Modality.AUDIO], name).unlink()
    dataset.store.path(dataset.specs[Modality.FACE], "c5").unlink()
    with pytest.raises(FeatureError, match=r"clip 'c1' has no audio features.*; 1 more clips have none") as caught:
        open_datasets(tiny_world, "train")
    assert str(caught.value).count("extract_features") == 1
    assert str(caught.value).endswith("--video_root <folder of your clips>")


def test_a_fault_of_a_whole_folder_is_told_once_and_names_the_key(tiny_world):
    dataset = open_datasets(tiny_world, "train")[0]
    dataset.specs[Modality.AU] = replace(dataset.specs[Modality.AU], dim=69)
    with pytest.raises(FeatureError, match=r"expects 69; change model.preextracted_au_dim in") as caught:
        dataset.check_arrays()
    assert str(caught.value).count("\n") == 0


def test_a_bad_array_is_never_replaced_by_another_clip(tiny_world):
    data = samples(tiny_world)
    store, specs = data.datasets[0].store, data.datasets[0].specs
    np.save(store.path(specs[Modality.FACE], "c2"), np.full((8, 12), np.inf, np.float32))
    with pytest.raises(FeatureError, match=r"c2\.npy.*finite"):
        data[Draw(2, 0)]
