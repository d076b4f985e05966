"""The table of what could not be used."""

import csv

from affect.core.failures import Failure, write_failures

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
