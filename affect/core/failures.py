"""What could not be used, out of many: one bad clip or image never stops the others, and a table says why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from affect.core.files import write_csv


@dataclass(frozen=True)
class Failure:
    """Why a clip or an image could not be used."""

    name: str
    """Of the clip; path of an image below its data's root, or its row of a CSV file."""
    stage: str
    """What was being done to it, e.g. decode, align, answer."""
    reason: str
    """In one sentence."""


def write_failures(
    path: str | Path,
    failures: Iterable[Failure],
    item: str = "name",
    seconds: Sequence[float] | None = None,
    empty: bool = True,
    writer: str = "",
) -> bool:
    """Write the table of failures and return whether there are any: name, stage, reason and, where given, seconds.

    item: what the table calls its first column; empty: False takes the table of a run before away where there is
    nothing to list; writer: as atomic_write takes it.
    """
    rows = [[failure.name, failure.stage, failure.reason] for failure in failures]
    if not rows and not empty:
        Path(path).unlink(missing_ok=True)
        return False
    header = [item, "stage", "reason"]
    if seconds is not None:
        header.append("seconds")
        rows = [[*row, f"{each:.3f}"] for row, each in zip(rows, seconds, strict=True)]
    write_csv(Path(path), header, rows, writer)
    return bool(rows)
