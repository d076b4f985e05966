"""The log of clips: it survives kills, belongs to one process, and its tables sum up all workers."""

import csv
from pathlib import Path

import pytest

from extractors.run.journal import ClipRecord, Journal, read_states, write_tables


def note(root, writer, *records):
    with Journal(root, writer) as journal:
        for record in records:
            journal.append(record)


def rows(path):
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_what_was_noted_is_read_back(tmp_path):
    failure = ("no such\nfile", "1f")
    note(
        tmp_path, "0of1", ClipRecord("ä b", ["face"], ["audio"], {"face": failure}, True, None, "pyav", {"decode": 0.5})
    )
    state = read_states(tmp_path)["ä b"]
    assert (state.failures, state.faceless, state.silent, state.reader) == ({"face": failure}, True, None, "pyav")


def test_a_clip_without_a_name_leaves_the_log_readable(tmp_path):
    note(tmp_path, "0of1", ClipRecord("", failures={"name": ("it is empty", "")}))
    assert read_states(tmp_path)[""].failures == {"name": ("it is empty", "")}


def test_a_full_disk_is_told_once(tmp_path):
    with Path("/dev/full").open("ab") as full, Journal(tmp_path, "0of1") as journal:
        journal._file = full
        with pytest.raises(OSError, match="No space left"):
            journal.append(ClipRecord("a"))


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    note(tmp_path, "0of1", ClipRecord("a"), ClipRecord("b"))
    path = tmp_path / "journal" / "0of1.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert list(read_states(tmp_path)) == ["a"]
    note(tmp_path, "0of1", ClipRecord("c"))
    assert list(read_states(tmp_path)) == ["a", "c"]
    assert path.read_bytes().count(b"\n") == 2


def test_two_processes_never_write_one_log(tmp_path):
    with Journal(tmp_path, "0of2"):
        with Journal(tmp_path, "1of2"):
            pass
        with pytest.raises(RuntimeError, match="another process extracts these clips"), Journal(tmp_path, "0of2"):
            pass


def test_a_later_run_takes_back_failures_of_what_it_tried_and_no_others(tmp_path):
    failed = ClipRecord("a", ["face", "audio"], [], {"face": ("x", ""), "audio": ("y", "")})
    note(tmp_path, "0of2", failed)
    note(tmp_path, "1of2", ClipRecord("a", ["face"], ["face"]))
    assert read_states(tmp_path)["a"].failures == {"audio": ("y", "")}


def test_the_tables_sum_up_every_worker(tmp_path):
    note(tmp_path, "0of2", ClipRecord("a", seconds={"decode": 1.5, "write": 0.25}))
    note(tmp_path, "1of2", ClipRecord("b", failures={"frame": ('an, "odd" reason', "")}, seconds={"decode": 2.0}))
    write_tables(tmp_path, read_states(tmp_path), "0of2")
    clips = {row["name"]: row for row in rows(tmp_path / "clips.csv")}
    assert (clips["a"]["status"], clips["b"]["status"]) == ("done", "failed")
    assert (clips["a"]["decode_s"], clips["a"]["write_s"], clips["a"]["encode_s"]) == ("1.500", "0.250", "")
    assert rows(tmp_path / "failures.csv") == [
        {"clip": "b", "stage": "frame", "reason": 'an, "odd" reason', "seconds": "2.000"}
    ]
