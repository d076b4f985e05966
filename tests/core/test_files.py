from pathlib import Path

import pytest

from affect.core import files
from affect.core.files import atomic_write


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "file.bin"
    with atomic_write(path) as handle:
        handle.write(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_what_a_killed_process_left_is_replaced_by_its_next_run(tmp_path):
    path = tmp_path / "file.bin"
    (tmp_path / ".file.bin.worker-1").write_bytes(b"a long half of the last run")
    with atomic_write(path, "worker-1") as handle:
        handle.write(b"new")
        assert {p.name for p in tmp_path.iterdir()} == {".file.bin.worker-1"}
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "file.bin"
    with atomic_write(path, "a") as one, atomic_write(path, "b") as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_shipped_file_is_found_from_any_folder_unless_one_of_its_name_is_here(tmp_path, monkeypatch):
    copy = tmp_path / "prefix/share/affect/eval_configs/demo.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text("a: 1\n")
    monkeypatch.setattr(files.sysconfig, "get_path", lambda name: str(tmp_path / "prefix"))
    monkeypatch.chdir(tmp_path)
    assert files.shipped("eval_configs/demo.yaml") == copy
    assert files.shipped("eval_configs/none.yaml") == Path("eval_configs/none.yaml")
    (tmp_path / "eval_configs").mkdir()
    (tmp_path / "eval_configs/demo.yaml").write_text("a: 2\n")
    assert files.shipped("eval_configs/demo.yaml") == Path("eval_configs/demo.yaml")
