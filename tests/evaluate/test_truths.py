import json

import numpy as np
import pytest

from affect.data.known_datasets import Task
from affect.evaluate.errors import LabelError
from affect.evaluate.truths import BENCHMARK, read_truth, read_truths


def test_the_benchmark_is_nine_sets_of_the_published_sizes():
    assert [known.test_clips for known in BENCHMARK.values()] == [411, 1169, 2610, 1241, 686, 4659, 457, 1034, 532]
    tasks = [known.task for known in BENCHMARK.values()]
    assert tasks == [Task.HIT_RATE] * 4 + [Task.SENTIMENT] * 4 + [Task.EW]


def test_label_files_of_the_test_sets_are_read_as_they_are(tmp_path):
    clips = {name: {"emo": emo, "val": val} for name, emo, val in (("Ses05F_1", 3, -1.0), ("Ses04F_1", 0, 1.0))}
    np.savez(tmp_path / "iemocap.npz", whole_corpus=clips)
    np.savez(tmp_path / "mosi.npz", train_corpus={"x": {"val": 0.0}}, test_corpus=clips)
    (tmp_path / "ovlabel.csv").write_text("name,openset\na,\"['happy', 'sad']\"\nb,\n")
    entries = {"IEMOCAPFour": "iemocap.npz", "CMUMOSI": "mosi.npz", "OVMERDPlus": "ovlabel.csv"}
    (tmp_path / "truths.json").write_text(json.dumps(entries))
    truths = {truth.dataset: truth.labels for truth in read_truths(tmp_path / "truths.json")}
    assert truths == {
        "IEMOCAP": {"Ses05F_1": "anger"},
        "MOSI": {"Ses05F_1": -1.0, "Ses04F_1": 1.0},
        "OV-MERD+": {"a": "happy, sad", "b": "neutral"},
    }


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"MELD": {"a": 9}}, "MELD: clip 'a' has the label 9: expected a number from 0 to 6"),
        ({"MELD": {"a": None, "b": float("nan"), "c": "joy"}}, r"2 clips \(a, b\) have NaN for a label"),
        ({"MER2023": {"a": 2}}, "clip 'a' has the label 2: expected words"),
        ({"MELD": 3}, "expected names and labels, or a path"),
        ({"my set": {"a": "joy"}}, "my set: expected names and labels"),
        ({"my set": {"task": "other", "labels": {}}}, "one of hitrate, sentiment, ew"),
        ({"MELD": "nowhere.npz"}, "nowhere.npz: no such file"),
    ],
)
def test_labels_that_cannot_be_used_are_explained(tmp_path, entries, reason):
    (tmp_path / "truths.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=reason):
        read_truths(tmp_path / "truths.json")


def test_a_label_file_without_a_test_corpus_is_refused(tmp_path):
    np.savez(tmp_path / "label.npz", train_corpus={"a": {"emo": "sad"}})
    with pytest.raises(ValueError, match="expected test1_corpus or test_corpus or whole_corpus with 'emo'"):
        read_truth(tmp_path / "label.npz", Task.HIT_RATE)
    (tmp_path / "x.csv").write_text("clip,label\na,b\n")
    with pytest.raises(ValueError, match="expected a column 'name', found clip, label"):
        read_truth(tmp_path / "x.csv", Task.EW)


def test_nan_labels_of_a_single_set_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": NaN, "b": 1.0}')
    with pytest.raises(LabelError, match=r"1 clip \(a\) has NaN for a label"):
        read_truth(tmp_path / "x.json", Task.SENTIMENT)
