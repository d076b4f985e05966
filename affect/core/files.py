"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: files that were renamed into it outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
