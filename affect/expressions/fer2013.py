"""The FER2013 CSV file (Goodfellow et al., ICONIP 2013): emotion, pixels, Usage; with FER+'s votes if asked for."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import progress
from rich.console import Console

from affect.core.failures import Failure
from affect.core.reading import reading
from affect.expressions.config import ImagesConfig
from affect.expressions.presets import PRESETS, ClassNames
from affect.expressions.records import POOL, SPLITS, Records, one_hot
from affect.expressions.votes import EXPRESSIONS, majority, multi_label, read_votes, soft

logger = logging.getLogger(__name__)

SIDE = 48
PARTS = {"training": "train", "publictest": "val", "privatetest": "test", "": POOL}
"""Usage -> part."""
_EMOTIONS = PRESETS["FER2013"].classes
_PIXELS = {str(value): value for value in range(256)}
_TARGETS = {"majority": majority, "soft": soft, "multi_label": multi_label}


class _Row(NamedTuple):
    """A row of the file, and where it cannot be used why not."""

    number: int
    """Counted from 0, as FER+ does."""
    usage: str
    """Empty where the file has no such column, or it says nothing that is known."""
    emotion: int = 0
    pixels: bytes = b""
    failure: Failure | None = None


def read_fer2013(
    path: Path, config: ImagesConfig, wanted: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, Records]]:
    """Return the class names and the parts of a FER2013 CSV file: train, val and test by Usage, else one pool.

    Classes are `wanted`, else those of the known data set, else FER+'s where there are votes, else FER2013's.
    Rows that cannot be used are failures of their part. Raises ValueError for a file without the columns,
    one of which more than half of the rows are bad, and votes on another file.
    """
    data_type = config.data_type or ("FERPlus" if config.votes_csv else "FER2013")
    if data_type == "FERPlus" and config.votes_csv is None:
        raise ValueError(f"{path}: FERPlus needs the votes on these images; set images.votes_csv to fer2013new.csv")
    classes = ClassNames(wanted or PRESETS[data_type].classes)
    every = _read_rows(path)
    rows, bad = [row for row in every if not row.failure], [row for row in every if row.failure]
    _refuse_mostly_bad(path, len(rows), bad)
    if config.votes_csv:
        rows, targets, strength = _voted(path, rows, config, classes)
    else:  # as strong as they are true
        targets = strength = _of_classes(one_hot([row.emotion for row in rows], len(_EMOTIONS)), _EMOTIONS, classes)
    usable = targets.sum(axis=1) > 0
    if not usable.all():
        logger.warning(
            "%s: %d of %d images have no label among %s and are left out",
            *(path, int((~usable).sum()), len(usable), ", ".join(classes.names)),
        )
    pixels = np.frombuffer(b"".join(row.pixels for row in rows), np.uint8).reshape(-1, SIDE, SIDE)
    names = [f"row {row.number}" for row in rows]
    whole = Records(names, strength.argmax(axis=1), targets, pixels)
    parts = np.array([PARTS[row.usage.casefold()] for row in rows])
    found = {part: whole.take(np.flatnonzero((parts == part) & usable)) for part in sorted(set(parts))}
    for row in bad:
        part = next(part for part in (PARTS[row.usage.casefold()], *SPLITS, POOL) if part in found)
        found[part] = replace(found[part], failures=(*found[part].failures, row.failure))
    return classes.names, found


def _read_rows(path: Path) -> list[_Row]:
    console = Console(stderr=True)
    shown = {"description": f"reading {path.name}", "console": console, "transient": True}
    with (
        reading(path, "the FER2013 CSV file"),
        progress.open(path, "r", encoding="utf-8-sig", newline="", disable=not console.is_terminal, **shown) as file,
    ):
        lines = csv.reader(file)
        columns = [name.strip().casefold() for name in next(lines, [])]
        if missing := [name for name in ("emotion", "pixels") if name not in columns]:
            raise ValueError(
                f"{path}: expected the columns emotion, pixels and Usage of FER2013, found no {missing[0]} among "
                f"{', '.join(columns)[:80] or 'nothing'}; take fer2013.csv or icml_face_data.csv"
            )
        return [
            _parse_row(number, dict(zip_longest(columns, line[: len(columns)], fillvalue="")), lines.line_num)
            for number, line in enumerate(lines)
        ]


def _parse_row(number: int, cells: dict[str, str], line: int) -> _Row:
    usage, emotion = cells.get("usage", "").strip(), cells.get("emotion", "").strip()
    stage, pixels = "label", b""
    if "usage" in cells and (not usage or usage.casefold() not in PARTS):
        reason, usage = f"expected the Usage Training, PublicTest or PrivateTest, found {usage[:40]!r}", ""
    elif not emotion.isdecimal() or int(emotion) >= len(_EMOTIONS):
        reason = f"expected an emotion from 0 to {len(_EMOTIONS) - 1}, found {emotion[:40]!r}"
    else:
        stage = "pixels"
        try:
            pixels = bytes(map(_PIXELS.__getitem__, cells.get("pixels", "").split()))
            reason = f"expected {SIDE * SIDE} pixels ({SIDE} x {SIDE}), found {len(pixels)}"
        except KeyError as error:
            reason = f"expected pixels of whole numbers from 0 to 255, found {error.args[0][:40]!r}"
    if len(pixels) == SIDE * SIDE:
        return _Row(number, usage, int(emotion), pixels)
    failure = Failure(f"row {number}", stage, f"row {number} (line {line}): {reason}")
    return _Row(number, usage, failure=failure)


def _refuse_mostly_bad(path: Path, good: int, bad: Sequence[_Row]) -> None:
    if not good and not bad:
        raise ValueError(f"{path}: expected rows of emotion and pixels, found none; take fer2013.csv")
    if len(bad) > good:
        raise ValueError(
            f"{path}: {len(bad)} of {len(bad) + good} rows cannot be used, the first is {bad[0].failure.reason}; "
            "take fer2013.csv as it was published"
        )
    if bad:
        logger.warning("%s: %d rows cannot be used, e.g. %s", path, len(bad), bad[0].failure.reason)


def _of_classes(values: np.ndarray, names: Sequence[str], classes: ClassNames) -> np.ndarray:
    """Return values [N, E] of expressions by name as those of the classes float32 [N, L], 0 where they say nothing."""
    found = np.zeros((len(values), len(classes.names)), np.float32)
    for column, name in enumerate(names):
        if (index := classes.index(name)) is not None:
            found[:, index] = values[:, column]
    return found


def _voted(
    path: Path, rows: Sequence[_Row], config: ImagesConfig, classes: ClassNames
) -> tuple[list[_Row], np.ndarray, np.ndarray]:
    """Return the rows with a Usage, targets float32 [N, L] by the votes, and how many [N, L] are for what is true."""
    votes = read_votes(config.votes_csv)
    last = rows[-1].number
    if last >= len(votes.usages):
        raise ValueError(f"{config.votes_csv}: expected votes on row {last} of {path}, found {len(votes.usages)} rows")
    for row in rows:
        found = votes.usages[row.number]
        if not found or found.casefold() not in PARTS:
            raise ValueError(
                f"{config.votes_csv}: expected the Usage Training, PublicTest or PrivateTest in row {row.number}, "
                f"found {found[:40]!r}; take fer2013new.csv of FER+ as it is"
            )
        if row.usage and row.usage.casefold() != found.casefold():
            raise ValueError(
                f"{config.votes_csv}: expected row {row.number} to be for {row.usage} as in {path}, found "
                f"{found}; the votes are on another file, or one of the two was sorted anew"
            )
    counts = votes.counts[[row.number for row in rows]]
    truths = _TARGETS[config.votes_target](counts)
    targets = _of_classes(truths, EXPRESSIONS, classes)
    if config.votes_target == "soft":
        targets /= np.maximum(targets.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    strength = _of_classes(np.where(truths > 0, counts[:, : len(EXPRESSIONS)], 0), EXPRESSIONS, classes)
    return [row._replace(usage=votes.usages[row.number]) for row in rows], targets, strength
