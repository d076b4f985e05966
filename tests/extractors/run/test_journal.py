"""The log of clips: it survives kills, belongs to one process, and its tables sum up all workers."""

import csv
import json
from pathlib import Path

import pytest

from extractors.run.journal import ClipRecord, Journal, RunReport, read_states, write_tables


def note(root, writer, *records):
    with Journal(root, writer) as journal:
        for record in records:
            journal.append(record)


def rows(path):
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_what_was_noted_is_read_back(tmp_path):
    failure = ("no such\nfile", "1f")
    record = ClipRecord("ä b", ["face"], ["audio"], {"face": failure}, True, None, "pyav", {"decode": 2 / 3})
    note(tmp_path / "new" / "folder", "0of1", record)
    state = read_states(tmp_path / "new" / "folder")["ä b"]
    assert (state.failures, state.faceless, state.silent, state.reader) == ({"face": failure}, True, None, "pyav")
    assert state.seconds == {"decode": 0.6667}
    assert "ä b" in (tmp_path / "new/folder/journal/0of1.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("earlier", "later", "known"),
    [(None, None, None), (True, None, True), (False, None, False), (None, True, True), (True, False, False)],
)
def test_what_a_later_run_did_not_look_at_stays_known(tmp_path, earlier, later, known):
    note(tmp_path, "0of1", ClipRecord("a", faceless=earlier, silent=earlier, reader="decord", seconds={"decode": 1.0}))
    note(tmp_path, "0of1", ClipRecord("a", faceless=later, silent=later, seconds={"write": 2.0}))
    state = read_states(tmp_path)["a"]
    assert (state.faceless, state.silent, state.reader) == (known, known, "decord")
    assert state.seconds == {"decode": 1.0, "write": 2.0}


def test_a_log_names_only_what_is_known(tmp_path):
    note(tmp_path, "0of1", ClipRecord("a"), ClipRecord("", silent=False))
    lines = [json.loads(line) for line in (tmp_path / "journal/0of1.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"name", "seconds", "at"}, {"name", "silent", "seconds", "at"}]


def test_a_run_begins_with_nothing_done():
    report = RunReport(3)
    assert (report.clips, report.complete, report.left_alone, report.made, report.stopped) == (3, 0, 0, {}, "")


def test_what_is_known_of_a_clip_follows_the_clock_and_not_the_names_of_logs(tmp_path, monkeypatch):
    times = iter([5.0, 3.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    note(tmp_path, "0of2", ClipRecord("a", faceless=True))
    note(tmp_path, "1of2", ClipRecord("a", faceless=False))
    assert read_states(tmp_path)["a"].faceless is True


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
    path.write_bytes(b'{"name": "d"')
    note(tmp_path, "0of1", ClipRecord("e"))
    assert list(read_states(tmp_path)) == ["e"]


def test_a_log_that_is_whole_loses_nothing(tmp_path):
    for name in "abc":
        note(tmp_path, "0of1", ClipRecord(name))
    assert list(read_states(tmp_path)) == ["a", "b", "c"]


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
    write_tables(tmp_path, read_states(tmp_path))
    clips = {row["name"]: row for row in rows(tmp_path / "clips.csv")}
    assert (clips["a"]["status"], clips["b"]["status"]) == ("done", "failed")
    assert (clips["a"]["decode_s"], clips["a"]["write_s"], clips["a"]["encode_s"]) == ("1.500", "0.250", "")
    assert rows(tmp_path / "failures.csv") == [
        {"clip": "b", "stage": "frame", "reason": 'an, "odd" reason', "seconds": "2.000"}
    ]
