"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import csv
import io
import json
import os
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_write(path: Path, writer: str = "") -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; flush it to disk and rename it into place when the block ends well.

    The folder is made if needed; when the block raises, nothing is left behind. What a killed process
    leaves is written over by the next one that uses the same `writer`, a name that no two processes
    may use at a time; without one the temporary file has a random name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if writer:
        temporary = path.with_name(f".{path.name}.{writer}")
        handle = temporary.open("wb")
    else:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary, handle = Path(name), os.fdopen(descriptor, "wb")
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], writer: str = "") -> None:
    """Write a table whole or not at all; what is no UTF-8, as names of files may be, is written with backslashes."""
    with atomic_write(path, writer) as handle:
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


def shipped(path: str | Path) -> Path:
    """Return a file as it is named where it is there, else the copy that the package brought, e.g. of eval_configs/."""
    path = Path(path)
    copy = Path(sysconfig.get_path("data")) / "share" / "affect" / path
    return copy if not path.is_absolute() and not path.exists() and copy.is_file() else path
