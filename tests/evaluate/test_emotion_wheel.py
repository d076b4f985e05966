import math
import shutil

import pandas as pd
import pytest

from affect.evaluate.emotion_wheel import ew_scores, hit_scores, overlaps, read_wheels
from affect.evaluate.errors import LabelError, MissingNamesError


def test_blank_cells_repeat_the_word_above_and_words_are_trimmed(small_wheels):
    assert small_wheels.trees[1, 1]["content"] == "happy"
    assert small_wheels.trees[1, 2] == {
        "happy": "joyful",
        "joyful": "joyful",
        "content": "joyful",
        "excited": "joyful",
        "sad": "hurt",
        "lonely": "lonely",
        "abandoned": "lonely",
        "hurt": "hurt",
        "let down": "hurt",
        "mad": "angry",
        "angry": "angry",
        "furious": "angry",
    }


def test_a_form_reaches_its_cluster_over_name_and_synonym(small_wheels):
    assert small_wheels.cluster("cheerfully", 1, 1) == "happy"
    assert small_wheels.cluster("cheerfully", 1, 2) == "joyful"
    assert small_wheels.cluster("angrily", 5, 1) is None and small_wheels.cluster("angrily", 4, 1) == "mad"
    assert small_wheels.cluster("surprise", 1, 1) is None


def test_a_clip_unknown_to_one_wheel_is_left_out_there_only(small_wheels):
    scores = ew_scores({"a": "[anger]", "b": "[joy]"}, {"a": "[anger]", "b": "[anger, joy]"}, small_wheels)
    assert [each["n"] for each in scores.per_wheel] == [2, 2, 2, 2, 1]
    assert scores.per_wheel[0] == {
        "wheel": 1,
        "fscore": pytest.approx(1.5 / 1.75),
        "precision": 0.75,
        "recall": 1,
        "n": 2,
    }
    assert scores.per_wheel[4]["precision"] == 1


def test_f_is_made_of_mean_precision_and_recall_of_a_wheel(small_wheels):
    truth = {"a": "[joy]", "b": "[joy, anger]"}
    scores = ew_scores(truth, {"a": "[joy, anger]", "b": "[joy]"}, small_wheels)
    assert scores.per_wheel[0] == {"wheel": 1, "fscore": 0.75, "precision": 0.75, "recall": 0.75, "n": 2}


def test_long_answers_lower_precision_but_not_the_hit_rate(small_wheels):
    truth = {"a": "joy", "b": "anger"}
    everything = dict.fromkeys(truth, "[joy, anger, loneliness]")
    assert hit_scores(truth, everything, small_wheels).values["hitrate"] == 1
    assert ew_scores(truth, everything, small_wheels).values["precision"] < 0.5


def test_unknown_words_are_counted_in_lower_case(small_wheels):
    counts = small_wheels.unknown_words(["[Joy, Surprise, blorp]", ["BLORP "], None])
    assert counts == {"surprise": 1, "blorp": 2}


def test_no_labels_mean_neutral_when_two_answers_are_compared(small_wheels):
    assert overlaps("", "[neutral]", small_wheels)
    assert overlaps("[cheerful]", ["joyfully"], small_wheels)
    assert not overlaps("", "[joy]", small_wheels)


def test_all_missing_names_are_kept_and_twenty_are_shown(small_wheels):
    truth = {f"clip_{i}": "joy" for i in range(30)}
    with pytest.raises(MissingNamesError, match=r"30 clips \(clip_0, .*clip_19 …\) have no answer") as error:
        ew_scores(truth, {}, small_wheels)
    assert error.value.names == list(truth)


def test_a_bad_answer_is_named_by_its_clip(small_wheels):
    with pytest.raises(LabelError, match="clip 'b': found 7"):
        hit_scores({"a": "joy", "b": "joy"}, {"a": "joy", "b": 7}, small_wheels)
    with pytest.raises(LabelError, match="level 3"):
        ew_scores({"a": "joy"}, {"a": "joy"}, small_wheels, level=3)


def test_nothing_to_score_is_nan_and_no_error(small_wheels):
    assert all(math.isnan(value) for value in ew_scores({}, {}, small_wheels).values.values())


@pytest.mark.parametrize("name", ["format.csv", "synonym.xlsx", "wheel3.xlsx"])
def test_a_missing_table_is_named(wheel_folder, tmp_path, name):
    folder = shutil.copytree(wheel_folder, tmp_path / "wheels")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: no such file; .* of all emotion wheel tables"):
        read_wheels(folder)


@pytest.mark.parametrize(
    ("name", "column"), [("format.csv", "format"), ("synonym.xlsx", "synonym_run8"), ("wheel5.xlsx", "level3")]
)
def test_a_missing_column_is_named(wheel_folder, tmp_path, name, column):
    folder = shutil.copytree(wheel_folder, tmp_path / "wheels")
    if name.endswith(".csv"):
        pd.read_csv(folder / name).drop(columns=column).to_csv(folder / name, index=False)
    else:
        pd.read_excel(folder / name).drop(columns=column).to_excel(folder / name, index=False)
    with pytest.raises(ValueError, match=rf"{name}: expected a column '{column}'"):
        read_wheels(folder)


def test_a_table_that_is_none_is_refused(wheel_folder, tmp_path):
    folder = shutil.copytree(wheel_folder, tmp_path / "wheels")
    (folder / "wheel2.xlsx").write_text("no workbook")
    with pytest.raises(ValueError, match=r"wheel2\.xlsx: expected a table"):
        read_wheels(folder)
