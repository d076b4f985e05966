"""Scores as JSON, CSV and tables on the screen."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from affect.core.files import atomic_write

MEAN = "mean"
"""Name of the row of means."""


@dataclass(frozen=True)
class ResultTable:
    """A table of scores; shares are fractions and shown in percent."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a scoring found: one JSON object and its tables."""

    content: dict[str, Any]
    tables: list[ResultTable] = field(default_factory=list)

    def emit(self, out: Path | None, table_file: Path | None) -> None:
        """Print the tables to the standard error; write the JSON to `out`, or else to the standard output.

        table_file: CSV of all tables, with all digits. NaN becomes "NaN" in both.
        """
        console = Console(file=sys.stderr)
        for table in self.tables:
            console.print(_on_screen(table))
            if table.note:
                console.print(table.note, highlight=False, markup=False)
        text = json.dumps(_plain(self.content), indent=2, ensure_ascii=False, allow_nan=False)
        if out is None:
            print(text)
        else:
            with atomic_write(out) as handle:
                handle.write(text.encode() + b"\n")
        if table_file is not None:
            table_file.parent.mkdir(parents=True, exist_ok=True)
            with table_file.open("w", encoding="utf-8", newline="") as handle:
                for table in self.tables:
                    lines = [["table", *table.header], *([table.title, *row] for row in table.rows)]
                    csv.writer(handle).writerows(_plain(lines))


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN becomes the string "NaN"."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return "NaN" if isinstance(value, float) and value != value else value


def _on_screen(table: ResultTable) -> Table:
    shown = Table(title=table.title, title_justify="left")
    for i, column in enumerate(table.header):
        shown.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*(f"{100 * value:.2f}" if isinstance(value, float) else str(value) for value in row))
    return shown
