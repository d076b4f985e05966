"""Captions: whose they are, what a clip without one is, and what a file of them may look like."""

import json

import numpy as np
import pytest

from affect.core.au_json import AuAnalysis, au_json_path, write_au_json
from affect.core.schema import Clip, Modality
from affect.data.captions import read_captions, with_captions
from affect.data.config import ConfigError, DatasetConfig
from affect.data.dataset import TrainingSamples, open_dataset, query_tokens
from affect.data.lengths import text_lengths
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw


@pytest.fixture
def write(tmp_path):
    def write_captions(**captions) -> str:
        path = tmp_path / "captions.json"
        path.write_text(json.dumps({"toy": {name: {"caption": text} for name, text in captions.items()}}))
        return str(path)

    return write_captions


@pytest.mark.parametrize(
    ("dataset", "spelled"),
    [
        *(("mer2023", "MER2023"), ("mercaptionplus", "MERCaptionPlus"), ("MELD", "MELD"), ("IEMOCAPFour", "IEMOCAP")),
        *(("cmumosi", "CMU-MOSI"), ("cmumosei", "CMU-MOSEI"), ("sims", "CH-SIMS"), ("simsv2", "CH-SIMS v2")),
        *(("mine", "MINE"), ("Mine", "mine")),
    ],
)
def test_data_sets_are_found_under_their_names(tmp_path, dataset, spelled):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"other": {}, spelled: {"a": {"caption": "The lips part."}, "b": {"caption": None}}}))
    assert read_captions(str(path), dataset) == {"a": "The lips part.", "b": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"meld": {}}, "expected captions of data set toy, found those of meld"),
        ({"toy": {"a": {"caption": 3}}}, "the caption of 'a' is no text"),
        ({"toy": {"a": "The lips part."}}, 'expected captions, {data set: {clip: {"caption": text}}}'),
        ({"toy": []}, "expected captions, "),
        ([], "expected a JSON object"),
    ],
)
def test_files_of_another_form_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        read_captions(str(path), "toy")
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_captions_may_be_the_sentences_of_au_json(tmp_path, caplog):
    """Each sentence once; a clip without a face has nothing to tell, one without AU JSON was not looked at."""
    told = {"1": "The lips part.", "2": "The lips part.", "3": "The brows rise."}
    faceless = {"total_frames": 3, "frames_without_face": [[1, 3]]}
    for name, analysis in {
        "a": AuAnalysis(summary_description=told),
        "b": AuAnalysis(au_info=faceless),
        "d": AuAnalysis(),
    }.items():
        write_au_json(analysis, au_json_path(tmp_path, "toy", name))
    config = DatasetConfig(use_nonverbal_text=True, mer_factory_output=str(tmp_path))
    clips = with_captions("toy", [Clip(name, "toy") for name in "abcd"], config)
    assert [clip.nonverbal for clip in clips] == ["The lips part. The brows rise.", "", None, None]
    assert "1 clips have AU JSON and no caption" in caplog.text and "expected sentences" in caplog.text


def test_nothing_to_tell_of_any_clip_is_an_error(write):
    clips = [Clip("a", "toy")]
    with pytest.raises(ConfigError, match=r"expected nonverbal_json, .* or mer_factory_output"):
        with_captions("toy", clips, DatasetConfig(use_nonverbal_text=True))
    config = DatasetConfig(use_nonverbal_text=True, nonverbal_json=write(b="The lips part."))
    with pytest.raises(ValueError, match="expected captions of the 1 clips of data set toy, found none"):
        with_captions("toy", clips, config)


def test_training_samples_show_captions_and_drop_them_like_streams(tiny_world, write):
    section = tiny_world.datasets["toy"]
    section.use_nonverbal_text, section.nonverbal_json = True, write(c0="The lips part.", c3="The lids tighten.")
    dataset = open_dataset("toy", section, tiny_world.model, "train")
    assert set(dataset.specs) == {Modality.FRAME, Modality.FACE, Modality.AUDIO}
    samples = TrainingSamples([dataset], load_prompts(), query_tokens(tiny_world.model), 0)
    shown = np.array(
        [["The lips part." in samples[Draw(0, cycle)].prompt, *_present(samples, cycle)] for cycle in range(80)]
    )
    assert all(0.6 < share < 0.95 for share in shown.mean(axis=0))  # each is dropped with a chance of 0.2
    assert not any("Signs" in samples[Draw(1, cycle)].prompt for cycle in range(3))
    lengths = text_lengths(samples)(0)
    section.use_nonverbal_text = False
    plain = TrainingSamples([open_dataset("toy", section, tiny_world.model, "train")], load_prompts(), {}, 0)
    assert (lengths - text_lengths(plain)(0)).tolist() == [14, 0, 0, 17, 0, 0, 0, 0]


def _present(samples: TrainingSamples, cycle: int) -> list[bool]:
    return [len(array) > 0 for array in samples[Draw(0, cycle)].features.values()]
