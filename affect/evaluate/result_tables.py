"""Scores as JSON, CSV and tables on the screen."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from affect.core.files import atomic_write, write_csv

MEAN = "mean"
"""Name of the row of means."""


@dataclass(frozen=True)
class ResultTable:
    """A table of scores, a dict a row; shares are fractions and shown in percent."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""

    def lines(self) -> list[list[Any]]:
        """Return the names of the columns, and the cells of each row."""
        return [list(self.rows[0]) if self.rows else [], *(list(row.values()) for row in self.rows)]


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
            titled = [
                (table.title if i else "table", line) for table in self.tables for i, line in enumerate(table.lines())
            ]
            first, *rows = [_plain([title, *line]) for title, line in titled]
            write_csv(table_file, first, rows)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN becomes the string "NaN"."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return "NaN" if isinstance(value, float) and value != value else value


def _on_screen(table: ResultTable) -> Table:
    header, *rows = table.lines()
    shown = Table(title=table.title, title_justify="left")
    for i, column in enumerate(header):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*(f"{100 * value:.2f}" if isinstance(value, float) else str(value) for value in row))
    return shown
