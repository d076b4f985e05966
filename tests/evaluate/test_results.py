import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from affect.core.reading import read_object
from affect.data.known_datasets import Task
from affect.data.npz_corpus import read_npz
from affect.evaluate.results import (
    labels_path,
    read_answers,
    read_labels,
    read_records,
    read_sentiments,
    write_labels,
)
from affect.evaluate.truths import read_truth
from affect.evaluate.vocabulary import Vocabulary

ANSWERS = {"a": "The person feels joyful.", "b": "Nothing."}


@pytest.fixture
def vocabulary(small_wheels):
    return Vocabulary(small_wheels)


def write_lines(path, answers):
    path.write_text("".join(json.dumps({"name": name, "answer": text}) + "\n" for name, text in answers.items()))
    return path


def test_published_answers_are_read_without_trusting_them(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", name2reason=ANSWERS)
    assert read_answers(tmp_path / "x.npz") == ANSWERS
    np.savez_compressed(tmp_path / "x-openset.npz", filenames=list(ANSWERS), fileitems=["[joyful]", "[]"])
    assert read_answers(tmp_path / "x-openset.npz") == {"a": "[joyful]", "b": "[]"}


def test_label_files_keep_numbers_of_any_type(tmp_path):
    corpus = {"a": {"emo": np.int64(3), "val": np.float32(-0.5)}, "b": {"emo": np.str_("sad"), "val": 1.0}}
    np.savez(tmp_path / "label.npz", test_corpus=corpus, order=np.arange(6).reshape(2, 3))
    assert read_npz(tmp_path / "label.npz") == {"test_corpus": corpus, "order": [[0, 1, 2], [3, 4, 5]]}


class Touch:
    """Writes a file when it is unpickled by a reader that trusts it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", name2reason=np.array({"a": Touch(tmp_path / "touched")}, dtype=object))
    with pytest.raises(
        ValueError, match=r"bad\.npz: expected an \.npz file of plain values, but .* it asks for .*open"
    ):
        read_answers(tmp_path / "bad.npz")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"no archive", b"", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected an \.npz file"):
        read_answers(tmp_path / "x.npz")


def test_a_cut_off_array_is_refused(tmp_path):
    whole = io.BytesIO()
    np.lib.format.write_array(whole, np.arange(100))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("name2reason.npy", whole.getvalue()[:200])
    with pytest.raises(ValueError, match=r"expected an \.npz file"):
        read_answers(tmp_path / "x.npz")


def test_an_npz_of_other_things_says_what_it_has(tmp_path):
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="expected name2reason, or filenames and fileitems, found weights"):
        read_answers(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("text", "found"), [("[1]", "a list"), ('"a"', "a text"), ("3", "a number"), ("{", "cannot be read")]
)
def test_json_that_is_no_object_is_refused(tmp_path, text, found):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=found):
        read_object(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("x.json", "x.jsonl", "x.npz"):
        with pytest.raises(ValueError, match=f"{name}: no such file"):
            read_answers(tmp_path / name)


def test_a_bad_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"name": "a", "answer": "b"}\n\n{"name": "a"}\n')
    with pytest.raises(ValueError, match="line 3: expected a JSON object with name, answer"):
        read_records(path, "name", "answer")


def test_a_clip_that_is_answered_twice_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"name": "a", "answer": "b"}\n' * 2)
    with pytest.raises(ValueError, match="expected each clip once, found 'a'"):
        read_answers(path)


def test_texts_are_labelled_by_the_vocabulary_until_a_model_has_done_it(tmp_path, vocabulary):
    path = write_lines(tmp_path / "checkpoint_000001-description.jsonl", ANSWERS)
    labelled = read_labels(path, vocabulary)
    assert (labelled.answers, labelled.source) == ({"a": ["joyful"], "b": []}, "wheel vocabulary")
    assert read_sentiments(path, vocabulary).answers == {"a": "positive", "b": "neutral"}
    write_labels(labels_path(path), {"a": "[lonely]", "b": "[]"}, "language model x")
    labelled = read_labels(path, vocabulary)
    assert (labelled.answers["a"], labelled.source) == ("[lonely]", "language model x")
    assert read_sentiments(path, vocabulary).answers["a"] == "negative"
    write_labels(labels_path(path, sentiment=True), {"a": "neutral", "b": "neutral"}, "language model x")
    assert read_sentiments(path, vocabulary).answers["a"] == "neutral"


def test_labels_kept_by_the_published_scorer_are_used(tmp_path, vocabulary):
    np.savez(tmp_path / "x.npz", name2reason=ANSWERS)
    np.savez(tmp_path / "x-openset.npz", filenames=["a", "b"], fileitems=["[lonely]", "[]"])
    np.savez(tmp_path / "x-openset-sentiment.npz", filenames=["a", "b"], fileitems=["positive", "neutral"])
    assert read_labels(tmp_path / "x.npz", vocabulary).answers == {"a": "[lonely]", "b": "[]"}
    assert read_sentiments(tmp_path / "x.npz", vocabulary).answers == {"a": "positive", "b": "neutral"}
    assert read_labels(tmp_path / "x-openset.npz", vocabulary).source == "as given"


def test_an_answer_that_is_no_text_is_left_for_the_scorer_to_name(tmp_path, vocabulary):
    path = write_lines(tmp_path / "x.jsonl", {"a": None, "b": ["joyful"]})
    assert read_labels(path, vocabulary).answers == {"a": None, "b": ["joyful"]}


def test_a_table_is_read_by_the_column_that_is_named(tmp_path, vocabulary):
    path = tmp_path / "x.csv"
    path.write_text(
        "name,openset,said\na,\"['happy', 'calm']\",He feels happy and angry.\nb,sad,She looks very happy.\n"
    )
    assert read_answers(path) == {"a": "['happy', 'calm']", "b": "sad"}
    given, found = read_labels(path, vocabulary), read_labels(path, vocabulary, "said")
    assert (given.source, found.source) == ("as given", "wheel vocabulary")
    assert found.answers == {"a": ["happy", "angry"], "b": ["happy"]}
    assert read_truth(path, Task.EW) == {"a": "happy, calm", "b": "sad"}
    with pytest.raises(ValueError, match=r"x\.csv: expected labels, found sentences \('He feels.*--gt-column"):
        read_truth(path, Task.EW, "said")
    with pytest.raises(ValueError, match=r"x\.csv: .*'other'.*--pred-column"):
        read_answers(path, "other")


def test_valences_are_read_from_a_table(tmp_path):
    (tmp_path / "x.tsv").write_text("name\tvalence\nc\t-0.5\n")
    assert read_truth(tmp_path / "x.tsv", Task.SENTIMENT) == {"c": -0.5}


def test_sentences_where_labels_are_expected_are_read_as_text(tmp_path, vocabulary):
    (tmp_path / "x.json").write_text(json.dumps({"a": "The brows go up, so the person feels happy.", "b": ""}))
    labelled = read_labels(tmp_path / "x.json", vocabulary)
    assert labelled.answers == {"a": ["happy"], "b": []} and labelled.source == "wheel vocabulary"
