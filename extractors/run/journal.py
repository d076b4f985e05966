"""What became of every clip: a log that survives a kill, and the tables that are made from it.

Each worker of a data set appends to a log of its own, `journal/{writer}.jsonl`, one line a clip; the
tables clips.csv and failures.csv sum up all logs, so that any number of workers can share a store.
"""

from __future__ import annotations

import fcntl
import heapq
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from pydantic import TypeAdapter

from affect.core.failures import Failure, write_failures
from affect.core.files import write_csv
from affect.core.reading import json_lines, reading

FOLDER, CLIP_TABLE, FAILURE_TABLE = "journal", "clips.csv", "failures.csv"
LOCK = "tables.lock"
STAGES = ("au_json", "au_text", "decode", "encode", "write")
"""What the seconds of a clip are counted under."""


@dataclass
class ClipRecord:
    """What one run did with one clip, or what is known of it after all runs."""

    name: str
    tried: list[str] = field(default_factory=list)
    """Stages and streams that were worked on."""
    made: list[str] = field(default_factory=list)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Stage or stream -> what went wrong, and a fingerprint of the files and settings that it came from; that is empty
    where trying again is cheap."""
    faceless: bool | None = None
    silent: bool | None = None
    """None: not looked at."""
    reader: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    at: float = 0.0
    """Unix time."""

    def add(self, later: ClipRecord) -> None:
        """Take in a later run."""
        for stage in ("name", *later.tried, *later.made):  # whatever was worked on has a name that will do
            self.failures.pop(stage, None)
        self.failures |= {stage: (reason, inputs) for stage, (reason, inputs) in later.failures.items()}
        self.faceless = self.faceless if later.faceless is None else later.faceless
        self.silent = self.silent if later.silent is None else later.silent
        self.reader = later.reader or self.reader
        self.seconds |= later.seconds


@dataclass
class RunReport:
    """What one run did, and what is wrong with its clips after it."""

    clips: int
    made: Counter = field(default_factory=Counter)
    """Stage or stream -> clips it was made for."""
    complete: int = 0
    """Clips that had everything before."""
    left_alone: int = 0
    """Clips that failed before and were not tried again."""
    failures: list[Failure] = field(default_factory=list)
    """Those of earlier runs too where they still hold."""
    told: set[tuple[str, str]] = field(default_factory=set)
    """Kinds of failures that the log has shown."""
    faceless: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What this process did with its time: wait (for decoded clips), au_text, encode, write (waiting for it), driver
    (all else); and total."""
    work_seconds: Counter = field(default_factory=Counter)
    """What clips took at each stage, added up; workers and writing threads do so side by side."""
    stopped: str = ""
    """Why the run ended before its last clip; empty where it did not."""


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
        self._file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def read_states(root: Path) -> dict[str, ClipRecord]:
    """Return what all logs of a data set say of its clips, in the order in which clips were first met."""
    states: dict[str, ClipRecord] = {}
    logs = [_records(path) for path in sorted((root / FOLDER).glob("*.jsonl"))]
    for record in heapq.merge(*logs, key=lambda record: record.at):
        states.setdefault(record.name, ClipRecord(record.name)).add(record)
    return states


@contextmanager
def tables_locked(root: Path) -> Iterator[None]:
    """Keep others from bringing the tables up to date, so that whoever does so last has read the logs of all."""
    with (root / FOLDER / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_tables(root: Path, states: dict[str, ClipRecord]) -> None:
    """Write clips.csv, one row a clip, and failures.csv, one row a failure."""
    clips = (
        [
            name,
            "failed" if state.failures else "done",
            bool(state.faceless),
            bool(state.silent),
            state.reader,
            *(f"{state.seconds[stage]:.3f}" if stage in state.seconds else "" for stage in STAGES),
        ]
        for name, state in states.items()
    )
    header = ["name", "status", "faceless", "silent", "reader", *(f"{stage}_s" for stage in STAGES)]
    write_csv(root / CLIP_TABLE, header, clips)
    failures = [
        (Failure(name, stage, reason), sum(state.seconds.values()))
        for name, state in states.items()
        for stage, (reason, _) in state.failures.items()
    ]
    seconds = [each for _, each in failures]
    write_failures(root / FAILURE_TABLE, (failure for failure, _ in failures), "clip", seconds)


_RECORD = TypeAdapter(ClipRecord)


def _records(path: Path) -> Iterator[ClipRecord]:
    """Yield the records of one log; a line that another process is just writing is left out."""
    for _, entry in json_lines(path, "name", advice="delete this file", whole=True):
        with reading(path, "one record of a clip a line", "delete this file"):
            record = _RECORD.validate_python(entry)
        yield record
