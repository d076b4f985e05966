"""Files of answers: going on after a stop, settings that differ, and the published program's .npz."""

import json

import numpy as np
import pytest

from affect.answer.files import Answer, npz_path, put_answer, read_answered, resume_answers, write_answers, write_npz
from affect.evaluate.results import find_answers, read_answers

SETTINGS = {"question": "What?", "max_new_tokens": 5, "without": []}


def answer(name: str, text: str = "It is a “smile”,\nso happy.") -> Answer:
    return Answer(name, "toy", "What?", text, ["face"], [])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results-toy/run/checkpoint_000001_loss_0.500-description.jsonl"


def test_a_run_goes_on_with_the_clips_that_have_no_answer(path):
    assert resume_answers(path, SETTINGS) == set()
    assert write_answers(path, [answer("a"), answer("b")]) == 2
    assert resume_answers(path, SETTINGS) == {"a", "b"}
    write_answers(path, [answer("c")])
    assert list(read_answered(path)) == ["a", "b", "c"]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_last_line_that_a_kill_left_half_written_is_dropped(path, cut):
    resume_answers(path, SETTINGS)
    write_answers(path, [answer("a"), answer("b")])
    path.write_bytes(path.read_bytes()[:-cut])
    assert resume_answers(path, SETTINGS) == {"a"}
    write_answers(path, [answer("b", "again")])
    assert read_answered(path) == {"a": answer("a").answer, "b": "again"}


def test_a_file_cut_within_its_first_line_begins_anew(path):
    resume_answers(path, SETTINGS)
    write_answers(path, [answer("a")])
    path.write_bytes(path.read_bytes()[:20])
    assert resume_answers(path, SETTINGS) == set()
    assert path.read_bytes() == b""


def test_a_line_that_is_no_answer_is_named(path):
    resume_answers(path, SETTINGS)
    write_answers(path, [answer("a")])
    with path.open("a") as handle:
        handle.write("no JSON\n")
    with pytest.raises(ValueError, match="line 2: expected a JSON object with name, answer"):
        resume_answers(path, SETTINGS)


def test_a_clip_that_is_answered_again_keeps_one_line(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    twice = [answer("a"), answer("b"), answer("a")]  # as files were written once
    write_answers(path, twice)
    with path.open("a") as handle:
        handle.write('{"name": "c", "answ')  # a run that was killed
    put_answer(path, answer("a", "now\u2028sad"))
    assert read_answered(path) == {"b": answer("b").answer, "a": "now\u2028sad"}
    assert path.read_text().count("\n") == 2
    put_answer(path, answer("d"))
    assert list(read_answered(path)) == ["b", "a", "d"]


def test_answers_of_other_settings_are_not_mixed(path):
    resume_answers(path, SETTINGS)
    write_answers(path, [answer("a")])
    with pytest.raises(ValueError, match=r"other settings \(max_new_tokens\); give --overwrite"):
        resume_answers(path, {**SETTINGS, "max_new_tokens": 6})
    beside = path.with_suffix(".settings.json")
    beside.unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        resume_answers(path, SETTINGS)
    write_npz(path)
    assert resume_answers(path, SETTINGS, overwrite=True) == set()
    assert not path.exists()
    assert not npz_path(path).exists()
    assert json.loads(beside.read_text()) == SETTINGS


def test_the_npz_is_read_as_published_scorers_read_it(path):
    resume_answers(path, SETTINGS)
    write_answers(path, [answer("a"), answer("b", "")])
    target = write_npz(path)
    assert target.name == "checkpoint_000001_loss_0.500.npz"
    answers = {"a": answer("a").answer, "b": ""}
    assert np.load(target, allow_pickle=True)["name2reason"].tolist() == answers
    assert read_answers(target) == answers  # without trusting it


def test_scoring_finds_each_kind_of_answers_once(tmp_path, path):
    labels = path.with_name(path.name.replace("description", "ovlabel"))
    for file in (path, labels):
        resume_answers(file, SETTINGS)
        write_answers(file, [answer("a")])
        write_npz(file)
    found = find_answers(tmp_path / "results", "toy")
    assert found == {"checkpoint_000001_loss_0.500": path}
    assert find_answers(tmp_path / "results", "toy", kind="ovlabel") == {"checkpoint_000001_loss_0.500": labels}
    path.unlink()
    assert find_answers(tmp_path / "results", "toy") == {"checkpoint_000001_loss_0.500": npz_path(path)}
    labels.unlink()
    found = find_answers(tmp_path / "results", "toy", kind="ovlabel")
    assert npz_path(labels) in found.values()
