import json
import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from affect.evaluate.classification import class_rows, classification_scores, confusion


def test_no_answer_counts_as_wrong():
    assert classification_scores(confusion(["a", "b", "a", "b"], ["a", None, "b", "b"], ["a", "b"])).means["acc"] == 0.5
    assert math.isnan(classification_scores(confusion([], [], ["a", "b"])).means["acc"])


def test_confusion_has_a_column_for_no_answer():
    counts = confusion(["a", "b", "b"], ["a", None, "a"], ["a", "b"])
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1]]


def test_no_answer_lowers_recall_and_leaves_precision():
    scores = classification_scores(confusion(["a", "a", "b"], ["a", None, "b"], ["a", "b", "c"]))
    recall, precision = scores.per_class["recall"], scores.per_class["precision"]
    assert recall[:2].tolist() == [0.5, 1] and precision[:2].tolist() == [1, 1]
    assert np.isnan([recall[2], precision[2]]).all()


def test_scores_are_those_of_the_library():
    rng = np.random.default_rng(0)
    truth, found = rng.choice(["a", "b", "c"], 200).tolist(), rng.choice(["a", "b", "c"], 200).tolist()
    scores = classification_scores(confusion(truth, found, ["a", "b", "c"]))
    assert math.isclose(scores.means["macro_f1"], f1_score(truth, found, average="macro"))
    assert math.isclose(scores.means["waf"], f1_score(truth, found, average="weighted"))
    assert math.isclose(scores.means["uar"], balanced_accuracy_score(truth, found))
    assert math.isclose(scores.means["acc"], accuracy_score(truth, found))


def test_classes_without_clips_are_left_out_and_nothing_gives_nan():
    scores = classification_scores(confusion(["a", "a"], ["a", None], ["a", "b"]))
    assert (scores.means["acc"], scores.means["uar"]) == (0.5, 0.5)
    assert math.isclose(scores.means["macro_f1"], 2 / 3)
    assert np.isnan(scores.per_class["f1"][1])
    assert math.isnan(classification_scores(confusion([], [], ["a"])).means["macro_f1"])


def test_rows_name_each_class_in_plain_values():
    scores = classification_scores(confusion(["a", "a", "b"], ["a", None, "a"], ["a", "b"]))
    rows = class_rows(scores.per_class, ["a", "b"])
    assert json.loads(json.dumps(rows)) == [
        {"label": "a", "f1": 0.5, "recall": 0.5, "precision": 0.5, "n": 2},
        {"label": "b", "f1": 0.0, "recall": 0.0, "precision": pytest.approx(math.nan, nan_ok=True), "n": 1},
    ]
