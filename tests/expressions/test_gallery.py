"""Scores, tables and sample pictures of an evaluation."""

import numpy as np
import pytest
from PIL import Image

from affect.core.failures import Failure
from affect.expressions.evaluation import Evaluation
from affect.expressions.gallery import draw_gallery, surest_cases, write_samples
from affect.expressions.scores import class_rows, draw_evaluation, evaluation_report, expression_scores

CLASSES = ("angry", "happy", "sad")


def evaluation(labels, probabilities, targets=None, names=None):
    labels, probabilities = np.array(labels, np.int64), np.array(probabilities, np.float32)
    targets = np.eye(len(CLASSES), dtype=np.float32)[labels] if targets is None else np.array(targets, np.float32)
    names = names or [f"{CLASSES[label]}/{i}.jpg" for i, label in enumerate(labels)]
    return Evaluation(names, labels, targets, probabilities, 0.7, [])


SOME = evaluation(
    [0, 0, 1, 1, 1, 0],
    [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.9, 0], [0.3, 0.6, 0.1], [0, 0.1, 0.9], [0.5, 0.4, 0.1]],
)


def test_scores_of_one_label_are_those_of_the_hand():
    scores = expression_scores(SOME, CLASSES, multi_label=False)
    recall, precision = np.array([2 / 3, 2 / 3]), np.array([1, 2 / 3])
    f1 = 2 * recall * precision / (recall + precision)
    assert scores.means["acc"] == pytest.approx(4 / 6)
    assert scores.means["macro_f1"] == pytest.approx(f1.mean()) and scores.means["uar"] == pytest.approx(2 / 3)
    assert scores.means["waf"] == pytest.approx(f1.mean()) and scores.means["loss"] == 0.7
    assert scores.counts.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]
    rows = class_rows(scores.per_class, CLASSES)
    assert rows[0]["n"] == 3 and rows[2]["n"] == 0 and np.isnan(rows[2]["f1"])
    # bins of a fifteenth: 0.5 | 0.6 | 0.8 | 0.9 three times, two of these right
    assert scores.means["ece"] == pytest.approx((0.5 + 0.4 + 0.8 + 3 * abs(0.9 - 2 / 3)) / 6)


def test_probabilities_that_are_nan_count_as_no_answer():
    scores = expression_scores(evaluation([0, 1], [[np.nan] * 3, [0.1, 0.8, 0.1]]), CLASSES, multi_label=False)
    assert scores.counts[:, -1].tolist() == [1, 0, 0] and scores.means["acc"] == 0.5
    assert scores.calibration.without == 1


def test_scores_of_several_labels_are_those_of_the_hand():
    targets = [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    found = evaluation([0, 0, 1], [[0.9, 0.2, 0.1], [0.6, 0.4, 0.0], [0.7, 0.9, 0.5]], targets)
    scores = expression_scores(found, CLASSES, multi_label=True)
    # angry: 2 right of 3 said and 2 true; happy: 1 of 1 and 2; sad: never true
    assert scores.means["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    # ranks of angry: 0.9 true, 0.7 false, 0.6 true; of happy: 0.9 true, 0.4 true
    assert scores.means["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert scores.means["exact_match"] == pytest.approx(1 / 3) and "acc" not in scores.means
    assert scores.counts is None and np.isnan(scores.per_class["average_precision"][2])
    assert scores.calibration.counts.sum() == 9


def test_the_report_says_what_was_scored_and_shows_every_class():
    scores = expression_scores(SOME, CLASSES, multi_label=False)
    report = evaluation_report(SOME, scores, CLASSES, {"ckpt": "best", "failures": 2}, "note")
    assert report.content["ckpt"] == "best" and report.content["n"] == 6 and len(report.content["confusion"]) == 3
    assert [row["label"] for row in report.content["per_label"]] == list(CLASSES)
    assert len(report.content["calibration"]) == 15
    expressions, labels, calibration = report.tables
    assert list(expressions.rows[0].values())[-2:] == ["0.7000", 6] and expressions.note == "note"
    assert len(labels.rows) == 3 and len(calibration.rows) == 4  # bins without answers are not shown


@pytest.mark.parametrize("multi_label", [False, True])
def test_pictures_of_the_scores_are_drawn(tmp_path, multi_label):
    paths = draw_evaluation(tmp_path, expression_scores(SOME, CLASSES, multi_label), CLASSES, "title")
    names = {"labels.png", "reliability.png"} | (set() if multi_label else {"confusion.png"})
    assert {path.name for path in paths} == names and all(Image.open(path).size[0] > 100 for path in paths)


def test_the_surest_cases_come_first_right_before_wrong():
    cases = surest_cases(SOME, CLASSES, False, most=1)
    assert [(case.name, case.predicted, case.right) for case in cases] == [
        ("angry/0.jpg", "angry", True),
        ("angry/1.jpg", "happy", False),
        ("happy/2.jpg", "happy", True),
        ("happy/4.jpg", "sad", False),
    ]
    assert cases[1].true == "angry" and cases[1].probability == pytest.approx(0.8)
    assert len(surest_cases(SOME, CLASSES, False, most=9)) == 6


def test_a_case_of_several_labels_is_right_only_when_all_are():
    found = evaluation([0, 0], [[0.9, 0.8, 0.1], [0.9, 0.3, 0.1]], targets=[[1, 1, 0], [1, 1, 0]])
    right, wrong = surest_cases(found, CLASSES, True, most=3)
    assert (right.true, right.predicted, right.right) == ("angry, happy", "angry, happy", True)
    assert (wrong.predicted, wrong.right) == ("angry", False)
    assert (right.probability, wrong.probability) == (pytest.approx(0.8), pytest.approx(0.7))


def test_images_without_a_number_are_no_cases():
    assert surest_cases(evaluation([0], [[np.nan] * 3]), CLASSES, False, 3) == []


def picture(name):
    return np.full((48, 40, 3), 10 * int(name.split("/")[1][0]), np.uint8)


@pytest.mark.parametrize("kept", [None, True, False])
def test_a_gallery_is_drawn_also_where_all_is_right_or_wrong(tmp_path, kept):
    cases = [case for case in surest_cases(SOME, CLASSES, False, 2) if kept in (None, case.right)]
    assert Image.open(draw_gallery(tmp_path / "new" / "g.png", cases, picture, "title")).size[0] > 200


def test_a_gallery_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no cases to draw"):
        draw_gallery(tmp_path / "g.png", [], picture)


def test_single_samples_lie_in_the_folder_of_their_class(tmp_path):
    paths = write_samples(tmp_path, surest_cases(SOME, CLASSES, False, 2), picture)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in paths)
    assert found == [
        "angry/right_1.png",
        "angry/right_2.png",
        "angry/wrong_1.png",
        "happy/right_1.png",
        "happy/right_2.png",
        "happy/wrong_1.png",
    ]
    assert (np.asarray(Image.open(tmp_path / "angry/right_1.png")) == picture("angry/0.jpg")).all()
    bad = surest_cases(evaluation([0], [[0.9, 0.1, 0]]), ("../up", "b", "c"), False, 1)
    with pytest.raises(ValueError, match=r"class '../up' cannot be used"):
        write_samples(tmp_path, bad, picture)


def test_an_evaluation_of_nothing_has_no_scores():
    failed = Evaluation(
        [], np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3)), float("nan"), [Failure("a", "decode", "b")]
    )
    scores = expression_scores(failed, CLASSES, False)
    assert np.isnan(scores.means["acc"]) and np.isnan(scores.means["ece"])
