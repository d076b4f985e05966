import os
import signal
from pathlib import Path

import pytest

from affect.core import files
from affect.core.files import atomic_folder, atomic_write


@pytest.fixture(params=["no name until it is whole", "a random name"])
def path(request, tmp_path, monkeypatch) -> Path:
    """A file to write, on a file system of either kind."""
    if request.param == "a random name":
        monkeypatch.delattr(os, "O_TMPFILE")
    return tmp_path / "folder" / "file.bin"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path):
    with atomic_write(path) as handle:
        handle.write(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["file.bin"]


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path):
    for path in (tmp_path / "new", Path(__file__)):
        before = path.read_bytes() if path.exists() else None
        if not (child := os.fork()):
            with atomic_write(path) as handle:
                handle.write(b"half")
                handle.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert (path.read_bytes() if path.exists() else None) == before
        assert not [name for name in names(path.parent) if name.startswith(".unfinished")]


def test_a_folder_has_its_name_when_all_in_it_is_on_disk(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(Path(f"/proc/self/fd/{fd}").resolve().name) or fsync(fd))
    monkeypatch.setattr(Path, "rename", lambda path, to: events.append("rename") or rename(path, to))
    with atomic_folder(tmp_path / "checkpoint") as folder:
        (folder / "adapter").mkdir()
        for name in ("a", "adapter/b"):
            (folder / name).write_text("x")
    place = events.index("rename")
    assert sorted(events[:place]) == [".checkpoint.partial", "a", "adapter", "b"]
    assert events[place + 1 :] == [tmp_path.name]


def test_the_umask_is_respected(path):
    before = os.umask(0o027)
    try:
        for _ in range(2):  # a new file, then one that is replaced
            with atomic_write(path) as handle:
                handle.write(b"x")
            assert path.stat().st_mode & 0o777 == 0o640
        with atomic_folder(path.with_name("checkpoint")) as folder:
            (folder / "weights").touch(0o600)  # as safetensors does
        assert (path.with_name("checkpoint") / "weights").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_planted_link_is_not_followed(path, monkeypatch):
    path.parent.mkdir()
    victim = path.with_name("victim")
    for name in (".unfinished-0", path.name, ".checkpoint.partial"):
        path.with_name(name).symlink_to(victim)
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0")
    with pytest.raises(FileExistsError), atomic_write(path) as handle:
        handle.write(b"x")
    with pytest.raises(FileExistsError), atomic_folder(path.with_name("checkpoint")) as folder:
        (folder / "weights").touch()
    assert not victim.exists()


def test_two_writers_do_not_meet(path):
    with atomic_write(path) as one, atomic_write(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["file.bin"]


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
