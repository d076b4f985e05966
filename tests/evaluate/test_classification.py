import math

from affect.evaluate.classification import accuracy, confusion


def test_no_answer_counts_as_wrong():
    assert accuracy(["a", "b", "a", "b"], ["a", None, "b", "b"]) == 0.5
    assert math.isnan(accuracy([], []))


def test_confusion_has_a_column_for_no_answer():
    counts = confusion(["a", "b", "b"], ["a", None, "a"], ["a", "b"])
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1]]
