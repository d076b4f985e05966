"""What could not be used, out of many: one bad clip or image never stops the others, and a table says why."""

from __future__ import annotations

import re
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

    @property
    def kind(self) -> tuple[str, str]:
        """Stage and reason without names and numbers, which failures of the same cause share."""
        nameless = self.reason.replace(self.name, "…") if self.name else self.reason
        return self.stage, re.sub(r"\d+", "…", nameless)


SHOWN_REASONS, SHOWN_NAMES = 10, 3
"""Reasons that are printed, and names of each; the table has all."""


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """Return a line for each reason, the most frequent first: how often, where, why, and the first names.

    Reasons that differ in names and numbers only are one; those beyond the first ten are counted in a last line.
    """
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.kind, []).append(failure)
    ranked = sorted(groups.values(), key=len, reverse=True)
    lines = []
    for group in ranked[:SHOWN_REASONS]:
        names = [failure.name for failure in group[:SHOWN_NAMES]] + ["…"] * (len(group) > SHOWN_NAMES)
        lines.append(f"{len(group)} x {group[0].stage}: {' '.join(group[0].reason.split())} ({', '.join(names)})")
    if rest := ranked[SHOWN_REASONS:]:
        lines.append(f"{sum(map(len, rest))} for {len(rest)} other reasons")
    return lines


def write_failures(
    path: str | Path,
    failures: Iterable[Failure],
    item: str = "name",
    seconds: Sequence[float] | None = None,
    empty: bool = True,
) -> bool:
    """Write the table of failures and return whether there are any: name, stage, reason and, where given, seconds.

    item: what the table calls its first column; empty: False takes the table of a run before away where there is
    nothing to list.
    """
    rows = [[failure.name, failure.stage, failure.reason] for failure in failures]
    if not rows and not empty:
        Path(path).unlink(missing_ok=True)
        return False
    header = [item, "stage", "reason"]
    if seconds is not None:
        header.append("seconds")
        rows = [[*row, f"{each:.3f}"] for row, each in zip(rows, seconds, strict=True)]
    write_csv(Path(path), header, rows)
    return bool(rows)
