import json

import numpy as np
import pytest

from affect.evaluate.errors import NothingToScoreError
from affect.evaluate.mer_unibench import HONEST, PUBLISHED, benchmark_report, best_on_test, one_for_all, score_file
from affect.evaluate.results import find_answers
from affect.evaluate.truths import read_truths
from affect.evaluate.vocabulary import Vocabulary

TRUTHS = {
    "MER2023": {"a": "joyful", "b": "lonely", "c": "angry", "d": "joyful"},
    "MOSI": {"g": 1.2, "b": -0.4, "c": 0.0, "d": 2.0},
    "OVMERDPlus": {"e": "['joyful', 'angry']", "f": "lonely"},
    "held out": {"task": "hitrate", "labels": {"a": "joyful", "b": "lonely"}},
}
FOLDERS = {"MER2023": "mer2023", "MOSI": "cmumosi", "OV-MERD+": "ovmerdplus", "held out": "held out"}
RIGHT = {"a": "joyful, angry", "b": "lonely", "c": "angry", "d": "joyful", "e": "joyful, angry", "f": "lonely"}
RIGHT["g"] = "joyful"
WRONG = {"a": "lonely", "b": "angry", "c": "lonely", "d": "joyful", "e": "joyful", "f": "joyful"}
WRONG["g"] = "lonely"


def write_system(root, by_folder, npz=False):
    """Write answers of three checkpoints to each test set: folder -> the checkpoints that are right."""
    for folder, right in by_folder.items():
        run = root.with_name(f"{root.name}-{folder}") / "run"
        run.mkdir(parents=True)
        for epoch in (10, 20, 30):
            answers = {name: f"It feels {text}." for name, text in (RIGHT if epoch in right else WRONG).items()}
            name = f"checkpoint_0000{epoch}_loss_0.5"
            if npz:
                np.savez(run / f"{name}.npz", name2reason=answers)
            else:
                lines = [json.dumps({"name": clip, "answer": text}) for clip, text in answers.items()]
                (run / f"{name}-description.jsonl").write_text("\n".join(lines))
                (run / f"{name}-ovlabel.jsonl").write_text("\n".join(lines[:1]))
    return root


@pytest.fixture
def truth_file(tmp_path):
    path = tmp_path / "truths.json"
    path.write_text(json.dumps(TRUTHS))
    return path


def results(root, truth_file, wheels):
    vocabulary = Vocabulary(wheels)
    return {
        truth.dataset: {
            name: score_file(path, truth, wheels, vocabulary)
            for name, path in find_answers(root, truth.dataset).items()
        }
        for truth in read_truths(truth_file)
    }


def test_the_published_rule_flatters_and_the_honest_one_takes_the_last(tmp_path, truth_file, small_wheels):
    right = {"mer2023": [10], "cmumosi": [20], "ovmerdplus": [10, 20, 30], "held out": [20]}
    scores = results(write_system(tmp_path / "results", right), truth_file, small_wheels)
    content = benchmark_report([scores], "held out", 200, 0).content
    published, honest = content[PUBLISHED]["test_sets"], content[HONEST]["test_sets"]
    assert list(published) == list(honest) == ["MER2023", "MOSI", "OV-MERD+"]
    assert {name: entry["checkpoint"][:17] for name, entry in published.items()} == {
        "MER2023": "checkpoint_000010",
        "MOSI": "checkpoint_000020",
        "OV-MERD+": "checkpoint_000010",
    }
    assert content[HONEST]["checkpoint"].startswith("checkpoint_000020")
    assert published["MER2023"]["score"] == 1 > honest["MER2023"]["score"]
    mean = np.mean([entry["score"] for entry in published.values()])
    assert content[PUBLISHED]["mean"]["score"] == pytest.approx(mean)
    assert content[PUBLISHED]["mean"]["metric"] == "of 3"
    last = benchmark_report([scores], None, 200, 0).content
    assert last[HONEST]["checkpoint"].startswith("checkpoint_000030") and "held out" in last[HONEST]["test_sets"]


def test_intervals_hold_their_score(tmp_path, truth_file, small_wheels):
    right = {folder: [10] for folder in FOLDERS.values()}
    scores = results(write_system(tmp_path / "results", right), truth_file, small_wheels)
    content = benchmark_report([scores], None, 300, 0).content
    for entry in [*content[HONEST]["test_sets"].values(), content[HONEST]["mean"]]:
        assert 0 <= entry["low"] <= entry["score"] <= entry["high"] <= 1
    assert content[HONEST]["test_sets"]["MER2023"]["low"] < content[HONEST]["test_sets"]["MER2023"]["high"]


def test_two_systems_are_compared_on_their_honest_checkpoints(tmp_path, truth_file, small_wheels):
    good = write_system(tmp_path / "good", {folder: [30] for folder in FOLDERS.values()})
    bad = write_system(tmp_path / "bad", {folder: [10] for folder in FOLDERS.values()}, npz=True)
    systems = [results(root, truth_file, small_wheels) for root in (good, bad)]
    compared = benchmark_report(systems, None, 300, 0).content["comparison"]
    assert list(compared) == [*FOLDERS, "mean"]
    assert compared["MER2023"]["first"] == 1 and compared["MER2023"]["second"] < 1
    assert compared["mean"]["difference"] == pytest.approx(compared["mean"]["first"] - compared["mean"]["second"])
    assert 0 < compared["mean"]["p"] <= 1


def test_nan_wins_by_the_published_rule_and_never_by_the_honest_one():
    scores = {"checkpoint_1": 0.2, "checkpoint_2": float("nan"), "checkpoint_3": 0.9}
    assert best_on_test(scores) == "checkpoint_2"
    assert one_for_all({"set": scores}, scores) == "checkpoint_3"


def test_the_honest_checkpoint_has_answers_to_every_set():
    scores = {"x": {"checkpoint_2": 0.1, "checkpoint_10": 0.1}, "y": {"checkpoint_2": 0.1}}
    assert one_for_all(scores) == "checkpoint_2"
    with pytest.raises(NothingToScoreError, match="answers to every data set"):
        one_for_all({"x": {"checkpoint_2": 0.1}, "y": {"checkpoint_3": 0.1}})


def test_only_asked_epochs_and_questions_are_found(tmp_path):
    root = write_system(tmp_path / "results", {"mer2023": []})
    found = find_answers(root, "MER2023", epochs=(20, 30))
    assert [path.name for path in found.values()] == [f"{name}-description.jsonl" for name in found]
    assert list(found) == ["checkpoint_000020_loss_0.5", "checkpoint_000030_loss_0.5"]
    assert all("ovlabel" in path.name for path in find_answers(root, "MER2023", kind="ovlabel").values())


def test_missing_answers_and_several_runs_say_what_to_do(tmp_path):
    root = write_system(tmp_path / "results", {"mer2023": []})
    with pytest.raises(ValueError, match="results-meld: no such folder"):
        find_answers(root, "MELD")
    with pytest.raises(NothingToScoreError, match="found none of these epochs"):
        find_answers(root, "MER2023", epochs=(5,))
    (tmp_path / "results-mer2023" / "second").mkdir()
    with pytest.raises(ValueError, match="--run names; found run, second"):
        find_answers(root, "MER2023")
    assert len(find_answers(root, "MER2023", run="run")) == 3


def test_a_faulty_file_is_named_with_its_test_set(tmp_path, truth_file, small_wheels):
    root = write_system(tmp_path / "results", {"mer2023": []})
    path = find_answers(root, "MER2023", kind="ovlabel")["checkpoint_000010_loss_0.5"]
    truth = read_truths(truth_file)[0]
    with pytest.raises(ValueError, match=r"-ovlabel.jsonl: MER2023: 3 clips \(b, c, d\) have no answer"):
        score_file(path, truth, small_wheels, Vocabulary(small_wheels))
