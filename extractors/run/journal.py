"""What became of every clip: a log that survives a kill, and the tables that are made from it.

Each worker of a data set appends to a log of its own, `journal/{writer}.jsonl`, one line a clip; the
tables clips.csv and failures.csv sum up all logs, so that any number of workers can share a store.
"""

from __future__ import annotations

import csv
import fcntl
import heapq
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from affect.core.files import atomic_write

FOLDER, CLIP_TABLE, FAILURE_TABLE = "journal", "clips.csv", "failures.csv"
LOCK = "tables.lock"
STAGES = ("au_json", "au_text", "decode", "encode", "write")
"""What the seconds of a clip are counted under."""


class Failure(NamedTuple):
    """Why a clip failed at a stage."""

    reason: str
    inputs: str = ""
    """Fingerprint of the files and settings that it came from; empty where trying again is cheap."""


@dataclass
class ClipRecord:
    """What one run did with one clip."""

    name: str
    tried: list[str] = field(default_factory=list)
    """Stages and streams that were worked on."""
    made: list[str] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    """Stage or stream -> what went wrong."""
    faceless: bool | None = None
    silent: bool | None = None
    """None: not looked at."""
    reader: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    at: float = 0.0
    """Unix time."""


@dataclass
class ClipState:
    """What is known of a clip after all runs."""

    failures: dict[str, Failure] = field(default_factory=dict)
    faceless: bool = False
    silent: bool = False
    reader: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, record: ClipRecord) -> None:
        """Take in a later run."""
        for stage in ("name", *record.tried, *record.made):  # whatever was worked on has a name that will do
            self.failures.pop(stage, None)
        self.failures |= {stage: Failure(*failure) for stage, failure in record.failures.items()}
        self.faceless = self.faceless if record.faceless is None else record.faceless
        self.silent = self.silent if record.silent is None else record.silent
        self.reader = record.reader or self.reader
        self.seconds |= record.seconds


class Journal:
    """The log of one worker of a data set (use it as a context manager).

    Raises RuntimeError where another process writes the same log, OSError where it cannot be written.
    """

    def __init__(self, root: Path, writer: str) -> None:
        self._path = root / FOLDER / f"{writer}.jsonl"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RuntimeError(
                f"{self._path}: another process extracts these clips; wait for it, or give each its own --shard-index"
            ) from None
        self._mend()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # what does not fit on a full disk was told when it was appended
            self._file.close()

    def append(self, record: ClipRecord) -> None:
        """Write a record down, at once."""
        record.at = time.time()
        line = {key: value for key, value in asdict(record).items() if key == "name" or value not in ([], {}, "", None)}
        line["seconds"] = {stage: round(value, 4) for stage, value in record.seconds.items()}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _mend(self) -> None:
        """Cut off the half of a line that a killed run may have left."""
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(max(0, size - (1 << 20)))
        tail = self._file.read()
        if tail and not tail.endswith(b"\n"):
            self._file.truncate(size - (len(tail) - tail.rfind(b"\n") - 1))
        self._file.seek(0, io.SEEK_END)


def read_states(root: Path) -> dict[str, ClipState]:
    """Return what all logs of a data set say of its clips, in the order in which clips were first met."""
    states: dict[str, ClipState] = {}
    logs = [_records(path) for path in sorted((root / FOLDER).glob("*.jsonl"))]
    for record in heapq.merge(*logs, key=lambda record: record.at):
        states.setdefault(record.name, ClipState()).add(record)
    return states


@contextmanager
def tables_locked(root: Path) -> Iterator[None]:
    """Keep others from bringing the tables up to date, so that whoever does so last has read the logs of all."""
    with (root / FOLDER / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_tables(root: Path, states: dict[str, ClipState], writer: str) -> None:
    """Write clips.csv, one row a clip, and failures.csv, one row a failure."""
    clips = (
        [
            name,
            "failed" if state.failures else "done",
            state.faceless,
            state.silent,
            state.reader,
            *(f"{state.seconds[stage]:.3f}" if stage in state.seconds else "" for stage in STAGES),
        ]
        for name, state in states.items()
    )
    failures = (
        [name, stage, reason, f"{sum(state.seconds.values()):.3f}"]
        for name, state in states.items()
        for stage, (reason, _) in state.failures.items()
    )
    header = ["name", "status", "faceless", "silent", "reader", *(f"{stage}_s" for stage in STAGES)]
    _write_table(root / CLIP_TABLE, header, clips, writer)
    _write_table(root / FAILURE_TABLE, ["clip", "stage", "reason", "seconds"], failures, writer)


def _write_table(path: Path, header: list[str], rows: Iterator[list[Any]], writer: str) -> None:
    with atomic_write(path, writer) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
        table = csv.writer(text)
        table.writerow(header)
        table.writerows(rows)
        text.flush()
        text.detach()


def _records(path: Path) -> Iterator[ClipRecord]:
    """Yield the records of one log; a line that another process is just writing is left out."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    yield ClipRecord(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}: expected one JSON record a line ({error}); delete this file") from None
