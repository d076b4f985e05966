"""The table of what could not be used."""

import csv

from affect.core.failures import Failure, failure_lines, write_failures

CUT = Failure("a/1.png", "decode", 'broken, "cut"')


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_failures_are_written_as_a_table(tmp_path):
    assert write_failures(tmp_path / "run/failures.csv", [CUT])
    assert table(tmp_path / "run/failures.csv") == [["name", "stage", "reason"], ["a/1.png", "decode", 'broken, "cut"']]


def test_a_table_of_clips_says_how_long_each_took(tmp_path):
    write_failures(tmp_path / "failures.csv", iter([CUT]), item="clip", seconds=[1.25])
    assert table(tmp_path / "failures.csv")[0] == ["clip", "stage", "reason", "seconds"]
    assert table(tmp_path / "failures.csv")[1][-1] == "1.250"


def test_without_failures_the_table_is_empty_or_that_of_a_run_before_goes(tmp_path):
    path = tmp_path / "failures.csv"
    write_failures(path, [CUT])
    assert not write_failures(path, [])
    assert table(path) == [["name", "stage", "reason"]]
    assert not write_failures(path, [], empty=False)
    assert not path.exists()


def test_names_that_are_no_utf8_are_written_with_backslashes(tmp_path):
    write_failures(tmp_path / "failures.csv", [Failure("\udce4.png", "decode", "")])
    assert table(tmp_path / "failures.csv")[1][0] == "\\udce4.png"


def test_failures_are_told_reason_by_reason():
    silent = [Failure(f"c{i}", "decode", f"/v/c{i}.mp4: found {i} samples of sound") for i in range(5)]
    others = [Failure("a", "decode", f"reason {chr(97 + i)}") for i in range(12)]
    lines = failure_lines([*others[:1], *silent, *others[1:]])
    assert lines[0] == "5 x decode: /v/c0.mp4: found 0 samples of sound (c0, c1, c2, …)"
    assert lines[1] == "1 x decode: reason a (a)"
    assert len(lines) == 11 and lines[-1] == "3 for 3 other reasons"
    assert failure_lines([]) == []
