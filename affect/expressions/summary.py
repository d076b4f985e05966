"""What a run found, told on the screen: a table, what stands out, what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from affect.core.failures import failure_lines, write_failures
from affect.expressions.naming import PREDICTIONS, Findings
from affect.expressions.predict import uniform_warning
from affect.expressions.reader import ExpressionReader

SHOWN = 20
"""Faces that are printed; the file has all."""


def report(reader: ExpressionReader, findings: Findings, folder: Path, console: Console) -> int:
    """Print what was found, write failures.csv, and return the exit code: 1 where something could not be read."""
    records = findings.records
    of_video = bool(records) and "frame" in records[0]
    faces = [(record["name"], face) for record in records for face in record["faces"]]
    console.print(_expression_table(faces) if of_video else _face_table(faces))

    def say(text: str, **style: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False, **style)

    flat = [name for name, face in faces if face["near_uniform"]]
    if warning := uniform_warning(reader.checkpoint, flat, len(faces), reader.card):
        say(warning, style="yellow")
    total, what = len(records), "frames" if of_video else "pictures"
    faceless = [record["name"] for record in records if not record["faces"]]
    if faceless:
        say(f"no face was found in {len(faceless)} of {total} {what}, e.g. {faceless[0]}")
    say(f"{len(faces)} faces in {total} {what}: {folder / PREDICTIONS}")
    file = folder / "failures.csv"
    if not write_failures(file, findings.failures, empty=False):
        return 0
    for line in failure_lines(findings.failures):
        say(line)
    say(f"{len(findings.failures)} could not be read: {file}")
    return 1


def _expression_table(faces: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Return a row for each expression in a video."""
    table = Table("expression", "faces", "share", "mean probability")
    for label, count in Counter(face["label"] for _, face in faces).most_common():
        mean = np.mean([face["probability"] for _, face in faces if face["label"] == label])
        table.add_row(escape(label), str(count), f"{100 * count / len(faces):.1f} %", f"{mean:.2f}")
    return table


def _face_table(faces: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Return a row for each of the first faces."""
    table = Table("picture", Column("face", no_wrap=True), "expression", "probability", "next")
    for name, face in faces[:SHOWN]:
        ranked = sorted(face["probabilities"].items(), key=lambda item: -item[1])
        second = f"{ranked[1][0]} {ranked[1][1]:.2f}" if len(ranked) > 1 else ""
        place, probability = "{},{} – {},{}".format(*face["box"]), f"{face['probability']:.2f}"
        table.add_row(escape(Path(name).name), place, escape(face["label"]), probability, escape(second))
    if len(faces) > SHOWN:
        table.add_row(f"… and {len(faces) - SHOWN} more", "", "", "", "")
    return table
