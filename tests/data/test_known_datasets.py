import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from affect.core.schema import Modality
from affect.data.config import DatasetConfig, ModelConfig, parse_config
from affect.data.dataset import TrainingSamples, make_sample, open_dataset, open_datasets, query_tokens
from affect.data.known_datasets import KNOWN_DATASETS, choices, dataset_name, media_roots
from affect.data.manifest import read_clips, read_manifest
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw
from affect.evaluate.truths import read_truths
from affect.features.store import FeatureStore
from miniature_datasets import WRITERS, write_corpora, write_table

OPEN_LABELS = {"a1": ("happy", "excited"), "a2": ("neutral",), "a3": ("worried",)}
EXPECTED = {
    "mercaptionplus": {"train": OPEN_LABELS},
    "ovmerd": {"train": OPEN_LABELS},
    "mer2025ov": {"test": {"t1": ("sad",)}, "candidates": {"t1": (), "t2": (), "t3": ()}},
    "mer2023": {"train": {"m1": ("happy",), "m2": ("worried",)}, "test": {"m3": ("neutral",)}},
    "mer2024": {"train": {"m1": ("happy",), "m2": ("worried",)}, "test": {"m3": ("neutral",)}},
    "meld": {"train": {"x0": ("anger",), "x3": ("neutral",)}, "test": {"x6": ("surprise",), "x5": ("fear",)}},
    "iemocap": {
        "train": {"Ses01F_impro01_F000": ("happy",), "Ses04M_impro02_M001": ("anger",)},
        "test": {"Ses05F_impro01_F000": ("neutral",), "Ses05M_script01_M005": ("sad",)},
    },
    "cmumosi": {"train": {"v1": -1.0, "v2": 0.0}, "test": {"v3": pytest.approx(0.4)}},
    "cmumosei": {"train": {"v1": -1.0, "v2": 0.0}, "val": {"v4": -2.5}, "test": {"v3": pytest.approx(0.4)}},
    "sims": {"train": {"v1": -1.0, "v2": 0.0}, "test": {"v3": pytest.approx(0.4)}},
    "simsv2": {"train": {"v1": -1.0, "v2": 0.0}, "test": {"v3": pytest.approx(0.4)}},
    "ovmerdplus": {"test": OPEN_LABELS},
}
"""Data set -> split -> clip -> labels or valence, of what `WRITERS` write."""
ANSWERS = {
    "mercaptionplus": ("hybird", {"a1 shows it.", "This person shows: happy, excited."}),
    "ovmerd": ("description", {"a1 shows it."}),
    "mer2025ov": ("ovlabel", {"This person shows: sad."}),
    "mer2023": ("onehot_w_candidates", {"The best fitting label: happy."}),
    "mer2024": ("ovlabel", {"This person shows: happy."}),
    "meld": ("onehot_wo_candidates", {"Above all this person shows: anger."}),
    "iemocap": ("onehot_w_candidates", {"The best fitting label: happy."}),
    "cmumosi": ("sentiment", {"What this person expresses is negative."}),
    "cmumosei": ("valence", {"As a number: -1.00."}),
    "sims": ("valence", {"As a number: -1.00."}),
    "simsv2": ("sentiment", {"What this person expresses is negative."}),
    "ovmerdplus": ("ovlabel", {"This person shows: happy, excited."}),
}
"""Data set -> label_type and the answers of the first clip of its first split."""
MODEL = ModelConfig(preextracted_visual_dim=3, preextracted_acoustic_dim=3, preextracted_au_dim=3)


def section(tmp_path, **settings) -> DatasetConfig:
    return DatasetConfig(
        data_root=str(tmp_path / "data"),
        preextracted_root=str(tmp_path / "features"),
        face_or_frame="audio_text",
        **settings,
    )


def write_features(name, config, clips):
    store = FeatureStore(Path(config.preextracted_root), name)
    for clip in clips:
        store.write(config.spec(Modality.AUDIO, 3), clip, np.ones((8, 3), np.float32), {})


def test_every_known_data_set_is_tested():
    assert set(WRITERS) == set(EXPECTED) == set(ANSWERS) == set(KNOWN_DATASETS)
    for name in KNOWN_DATASETS:
        assert set(EXPECTED[name]) >= set(KNOWN_DATASETS[name].splits) - {"val"}


@pytest.mark.parametrize("name", WRITERS)
def test_clips_labels_and_subtitles_are_read_from_the_published_files(tmp_path, name):
    WRITERS[name](tmp_path / "data")
    for split, expected in EXPECTED[name].items():
        clips = read_clips(name, section(tmp_path), split)
        found = {clip.name: clip.labels if clip.valence is None else clip.valence for clip in clips}
        assert found == expected
        for clip in clips:
            # a clip without a line in the transcripts says nothing
            words = "" if clip.name == "t3" else f"{clip.name} {'说' if name == 'mer2024' else 'says'}"
            assert (clip.subtitle, clip.dataset, clip.split) == (words, name, split)
            has_reason = name in ("mercaptionplus", "ovmerd")
            assert clip.description == (f"{clip.name} shows it." if has_reason else "")


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_makes_samples_for_training_and_for_questions(tmp_path, name):
    WRITERS[name](tmp_path / "data")
    label_type, answers = ANSWERS[name]
    splits = list(EXPECTED[name])
    config = section(tmp_path, label_type=label_type)
    write_features(name, config, [clip for split in splits for clip in EXPECTED[name][split]])
    prompts, tokens = load_prompts(), query_tokens(MODEL)

    samples = TrainingSamples([open_dataset(name, config, MODEL, splits[0])], prompts, tokens, seed=0)
    samples.check_answers()
    drawn = [samples[Draw(0, cycle)] for cycle in range(20)]
    assert {sample.answer.removesuffix(prompts.answer_end) for sample in drawn} == answers
    for sample in drawn:
        assert sample.clip.subtitle
        assert sample.prompt[slice(*sample.spoken)] == sample.clip.subtitle
    if label_type == "onehot_w_candidates":
        assert ", ".join(KNOWN_DATASETS[name].classes) in drawn[0].prompt
    if label_type == "valence":
        lowest, highest = KNOWN_DATASETS[name].valence_range
        assert f"between {lowest} " in drawn[0].prompt
        assert f"and {highest} " in drawn[0].prompt

    dataset = open_dataset(name, config, MODEL, splits[-1])
    sample = make_sample(dataset.clips[0], dataset.features(0), "audio_text", prompts, "description", tokens)
    assert "<AudioHere>" in sample.prompt
    assert sample.clip.subtitle in sample.prompt
    assert sample.answer == ""


@pytest.mark.parametrize("name", [name for name, known in KNOWN_DATASETS.items() if known.benchmark])
def test_clips_and_labels_of_a_test_split_are_those_that_are_scored(tmp_path, name):
    WRITERS[name](tmp_path / "data")
    known = KNOWN_DATASETS[name]
    path = tmp_path / "data" / known.folder / known.splits["test"].clips.file
    (tmp_path / "truths.json").write_text(json.dumps({name.upper(): str(path)}))
    (truth,) = read_truths(tmp_path / "truths.json")
    clips = read_clips(name, section(tmp_path), "test")
    read = {clip.name: ", ".join(clip.labels) if clip.valence is None else clip.valence for clip in clips}
    assert (truth.dataset, truth.labels) == (known.benchmark, read)


def test_what_is_not_scored_is_for_training():
    assert {name for name, known in KNOWN_DATASETS.items() if not known.benchmark} == {
        "mercaptionplus",
        "ovmerd",
        "mer2025ov",
    }


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("mercaptionplus", "test", "data set mercaptionplus has no split 'test': expected one of train"),
        ("mer2025ov", "train", "expected one of test, candidates"),
        ("meld", "val", r"label\.npz: expected val_corpus with 'emo' of every clip, found train_corpus, test_corpus"),
        ("mer2023", None, "has no split None: expected one of train, test"),
    ],
)
def test_a_split_that_is_not_there_says_which_are(tmp_path, name, split, message):
    WRITERS[name](tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        read_clips(name, section(tmp_path), split)


def test_a_data_set_that_is_nowhere_names_the_file_and_the_key(tmp_path):
    with pytest.raises(ValueError, match=r"mer2023-dataset-process/label-6way\.npz: no such file.*data_root"):
        read_clips("mer2023", section(tmp_path), "train")


def test_a_table_of_ones_own_is_taken_before_the_published_files(tmp_path):
    WRITERS["meld"](tmp_path / "data")
    write_table(tmp_path / "own.csv", name=["x0"], emotion=["joy"], subtitle=["Hi"])
    config = section(tmp_path, csv_path=str(tmp_path / "own.csv"), label_column="emotion")
    (clip,) = read_clips("meld", config, "train")
    assert (clip.labels, clip.subtitle) == (("joy",), "Hi")
    assert choices("meld", config).labels == KNOWN_DATASETS["meld"].classes


def test_an_empty_list_of_labels_is_neutral_in_known_data_sets_only(tmp_path):
    write_table(tmp_path / "own.csv", name=["a"], openset=["[]"])
    config = section(tmp_path, csv_path=str(tmp_path / "own.csv"))
    assert read_clips("ovmerd", config, "train")[0].labels == ("neutral",)
    assert read_clips("mine", config, "train")[0].labels == ()
    assert read_clips("meld", config, "train")[0].labels == ()


def test_columns_without_a_table_are_no_silent_wish(tmp_path):
    with pytest.raises(ValueError, match=r"datasets\.meld\.label_column: says how to read .*csv_path"):
        read_clips("meld", section(tmp_path, label_column="emotion"), "train")


@pytest.mark.parametrize(
    ("name", "file", "key", "value", "message"),
    [
        ("meld", "label.npz", "emo", 7, "clip 'x' has the label 7: expected a number from 0 to 6"),
        ("meld", "label.npz", "emo", -1, "expected a number from 0 to 6"),
        ("mer2023", "label-6way.npz", "emo", 2, "has the label 2: expected words"),
        ("sims", "label.npz", "val", "good", "clip 'x' has the valence 'good': expected a number"),
        ("sims", "label.npz", "val", float("nan"), "has the valence nan: expected a number"),
        ("sims", "label.npz", "emo", 1.0, "train_corpus: expected 'val' of every clip, 'x' has none"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, name, file, key, value, message):
    WRITERS[name](tmp_path / "data")
    write_corpora(tmp_path / "data" / KNOWN_DATASETS[name].folder / file, key, {"train_corpus": {"x": value}})
    with pytest.raises(ValueError, match=message):
        read_clips(name, section(tmp_path), "train")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": ["a"], "labels": ["sad"]}, r"ovlabel\.csv: expected a column 'openset', found name, labels"),
        ({"clip": ["a"], "openset": ["sad"]}, "expected a column 'name', found clip, openset"),
        ({"name": ["a", "a"], "openset": ["sad", "happy"]}, "expected each clip once, found 'a'"),
        ({"name": ["../a"], "openset": ["sad"]}, "cannot be used as a file name"),
        ({"name": [], "openset": []}, "expected clips of split 'test', found none"),
    ],
)
def test_published_tables_that_are_broken_are_refused(tmp_path, table, message):
    WRITERS["ovmerdplus"](tmp_path / "data")
    write_table(tmp_path / "data/ovmerdplus-process/ovlabel.csv", **table)
    with pytest.raises(ValueError, match=message):
        read_clips("ovmerdplus", section(tmp_path), "test")


def test_a_line_that_is_there_twice_counts_once(tmp_path):
    WRITERS["ovmerdplus"](tmp_path / "data")
    write_table(tmp_path / "data/ovmerdplus-process/ovlabel.csv", name=["a", "a"], openset=["sad", "sad"])
    assert len(read_clips("ovmerdplus", section(tmp_path), "test")) == 1


@pytest.mark.parametrize(
    ("name", "label_type", "message"),
    [
        (
            "mer2023",
            "hybird",
            r"mer2023: description needs the clips' description; split train of .* has labels \(label-6way",
        ),
        ("cmumosi", "ovlabel", r"needs the clips' labels; split train of cmumosi has valence \(label\.npz\)"),
        ("meld", "sentiment", "sentiment needs the clips' valence"),
        ("mercaptionplus", "onehot_wo_candidates", "clip 'a1' .* labels happy, excited: expected one"),
        ("mercaptionplus", "onehot_w_candidates", "expected labels to choose from, found none"),
    ],
)
def test_a_question_that_a_data_set_cannot_answer_stops_training(tmp_path, name, label_type, message):
    WRITERS[name](tmp_path / "data")
    config = section(tmp_path, label_type=label_type)
    write_features(name, config, EXPECTED[name]["train"])
    dataset = open_dataset(name, config, MODEL, "train")
    with pytest.raises(ValueError, match=message):
        TrainingSamples([dataset], load_prompts(), query_tokens(MODEL), 0).check_answers()


def test_iemocap_goes_by_two_names(tmp_path):
    WRITERS["iemocap"](tmp_path / "data")
    assert dataset_name("IEMOCAPFour") == dataset_name("iemocap") == "iemocap"
    assert dataset_name("MER2023") == "mer2023"
    assert dataset_name("MyOwn") == "MyOwn"
    config = section(tmp_path, label_type="ovlabel")
    write_features("iemocap", config, EXPECTED["iemocap"]["test"])
    dataset = open_dataset("IEMOCAPFour", config, MODEL, "test")
    dataset.check()
    assert dataset.name == "iemocap"
    assert dataset.store.root.name == "iemocap"


def test_raw_clips_are_where_their_publishers_put_them(tmp_path):
    config = section(tmp_path)
    base = tmp_path / "data/iemocap-process"
    (base / "subaudio").mkdir(parents=True)
    roots = media_roots("IEMOCAPFour", config)
    assert (roots.video, roots.audio, roots.face) == (base / "subvideo-tgt", base / "subaudio", None)
    (base / "openface_face").mkdir()
    assert media_roots("iemocap", config).face == base / "openface_face"
    own = section(tmp_path, video_root="v", audio_root="a", face_root="f")
    assert media_roots("iemocap", own) == media_roots("mine", own)
    assert media_roots("mine", own).video == Path("v")
    assert media_roots("mine", config).video is None


@pytest.mark.parametrize("given", ["file", ["file"]])
def test_files_of_labels_say_where_a_known_data_set_is(tmp_path, given):
    WRITERS["mer2023"](tmp_path / "elsewhere")
    folder = (tmp_path / "elsewhere/mer2023-dataset-process").rename(tmp_path / "renamed")
    file = str(folder / "label-6way.npz")
    content = {"ann_paths": file if given == "file" else [file]}
    config = parse_config({"datasets": {"mer2023": content}}, "x").datasets["mer2023"]
    assert [clip.subtitle for clip in read_clips("mer2023", config, "test")] == ["m3 says"]
    assert media_roots("mer2023", config).video == folder / "video"


def test_a_table_of_ones_own_may_be_among_ann_paths(tmp_path):
    write_table(tmp_path / "mine.csv", name=["a", "b"])
    path = str(tmp_path / "mine.csv")
    assert len(read_clips("mine", DatasetConfig(ann_paths=[path]))) == 2
    with pytest.raises(ValueError, match=r"datasets\.mine\.ann_paths: expected one table of clips, found 2 files"):
        read_clips("mine", DatasetConfig(ann_paths=[path, path]))
    for paths in ([path], ["a/label-6way.npz", "b/label-6way.npz"]):
        with pytest.raises(ValueError, match=r"expected published files \(label-6way\.npz\) in one folder"):
            read_clips("mer2023", DatasetConfig(ann_paths=paths), "test")


def test_yaml_of_users_needs_no_table(shared, tmp_path):
    """The users' own YAML names no table: the data set's name says where it is."""
    WRITERS["mercaptionplus"](tmp_path / "data")
    content = yaml.safe_load((shared / "goldens/user_configs/recommended_train_with_preextracted_au.yaml").read_text())
    config = parse_config(content, "users")
    config.datasets["mercaptionplus"].data_root = str(tmp_path / "data")
    manifest = read_manifest("mercaptionplus", config.datasets["mercaptionplus"], "train")
    assert [clip.name for clip in manifest.clips] == ["a1", "a2", "a3"]


class Zeros:
    """Features of any clip, from nowhere."""

    root = Path("nowhere")

    def read(self, spec, name):
        return np.zeros((2, spec.dim), np.float32)

    def missing(self, spec, names):
        return []


def test_features_may_come_from_anything_that_reads_them(tmp_path):
    WRITERS["sims"](tmp_path / "data")
    content = {
        "model": {"preextracted_acoustic_dim": 5},
        "datasets": {"sims": {"data_root": str(tmp_path / "data"), "face_or_frame": "audio_text"}},
    }
    (dataset,) = open_datasets(parse_config(content, "x"), "test", {"sims": Zeros()})
    assert dataset.features(0)[Modality.AUDIO].shape == (2, 5)
