"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import secrets
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk without room."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of a full disk name the file that is written, as the system does not."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file without a name; flush it to disk and name it `path` when the block ends well.

    The folder is made if needed; when the block raises or the process is killed, nothing is left behind. On file
    systems where every file has a name it has a random hidden one, which a kill leaves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{secrets.token_hex(8)}")  # nobody can foresee it and plant a link there
    descriptor, named = _create(temporary)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(descriptor)
            if not named:
                try:
                    _link(descriptor, path)
                    return
                except FileExistsError:  # it is to be replaced, and only a rename does that at once
                    _link(descriptor, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(temporary: Path) -> tuple[int, bool]:
    """Open a new file for writing, with the rights that the umask leaves, and return whether it has a name."""
    if hasattr(os, "O_TMPFILE") and os.access("/proc/self/fd", os.X_OK):  # Linux
        with suppress(OSError):  # e.g. NFS; or what the next call says, too
            return os.open(temporary.parent, os.O_TMPFILE | os.O_WRONLY, 0o666), False
    return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), True  # O_EXCL follows no link


def _link(descriptor: int, path: Path) -> None:
    # with src_dir_fd, which an absolute path does without, Python asks for the link to be followed
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Keep other processes out while entered, by a lock on a file that stays (raises ValueError where one is in)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(refusal) from None
        except OSError:  # a file system without locks
            pass
        yield


def usual_rights(path: Path) -> None:
    """Give a new file the rights that the umask left to its folder: those of safetensors are the owner's alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whole or not at all; what is no UTF-8, as names of files may be, is written with backslashes."""
    with atomic_write(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8", errors="backslashreplace", newline="")
        csv.writer(text).writerows([header, *rows])
        text.flush()
        text.detach()


def write_json(path: Path, content: Any) -> None:
    """Write plain values whole or not at all (raises ValueError for NaN and infinity, which JSON does not have)."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(content, indent=1, allow_nan=False).encode())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: files that were renamed into it outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder under another name; flush all in it to disk and name it `path` when the block ends well.

    What a killed process left of the same folder goes first.
    """
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for place, _, names in os.walk(temporary):
            for name in names:
                usual_rights(Path(place, name))
                with Path(place, name).open("rb") as handle:
                    os.fsync(handle.fileno())
            sync_folder(Path(place))
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def shipped(path: str | Path) -> Path:
    """Return a file as it is named where it is there, else the copy that the package brought, e.g. of eval_configs/."""
    path = Path(path)
    copy = Path(sysconfig.get_path("data")) / "share" / "affect" / path
    return copy if not path.is_absolute() and not path.exists() and copy.is_file() else path
