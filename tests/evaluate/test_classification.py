import math

import numpy as np
from sklearn.metrics import balanced_accuracy_score, f1_score

from affect.evaluate.classification import accuracy, classification_scores, confusion, recall_and_precision


def test_no_answer_counts_as_wrong():
    assert accuracy(["a", "b", "a", "b"], ["a", None, "b", "b"]) == 0.5
    assert math.isnan(accuracy([], []))


def test_confusion_has_a_column_for_no_answer():
    counts = confusion(["a", "b", "b"], ["a", None, "a"], ["a", "b"])
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1]]


def test_no_answer_lowers_recall_and_leaves_precision():
    recall, precision = recall_and_precision(confusion(["a", "a", "b"], ["a", None, "b"], ["a", "b", "c"]))
    assert recall[:2].tolist() == [0.5, 1] and precision[:2].tolist() == [1, 1]
    assert np.isnan([recall[2], precision[2]]).all()


def test_scores_are_those_of_the_library():
    rng = np.random.default_rng(0)
    truth, found = rng.choice(["a", "b", "c"], 200).tolist(), rng.choice(["a", "b", "c"], 200).tolist()
    scores = classification_scores(confusion(truth, found, ["a", "b", "c"]))
    assert math.isclose(scores.macro_f1, f1_score(truth, found, average="macro"))
    assert math.isclose(scores.waf, f1_score(truth, found, average="weighted"))
    assert math.isclose(scores.uar, balanced_accuracy_score(truth, found))
    assert math.isclose(scores.acc, accuracy(truth, found))


def test_classes_without_clips_are_left_out_and_nothing_gives_nan():
    scores = classification_scores(confusion(["a", "a"], ["a", None], ["a", "b"]))
    assert (scores.acc, scores.uar) == (0.5, 0.5)
    assert math.isclose(scores.macro_f1, 2 / 3)
    assert np.isnan(scores.f1[1])
    assert math.isnan(classification_scores(confusion([], [], ["a"])).macro_f1)
