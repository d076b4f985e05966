"""The FER2013 CSV file (Goodfellow et al., ICONIP 2013): emotion, pixels, Usage; with FER+'s votes if asked for."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from rich import progress
from rich.console import Console

from affect.core.failures import Failure
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


@dataclass
class _Table:
    """The usable rows of the file."""

    rows: list[int] = field(default_factory=list)
    """Counted from 0, as FER+ does."""
    emotions: list[int] = field(default_factory=list)
    usages: list[str] = field(default_factory=list)
    """Empty strings where the file has no such column."""
    pixels: bytearray = field(default_factory=bytearray)
    """One byte each."""
    failures: list[tuple[str, Failure]] = field(default_factory=list)
    """With the usage of the row."""


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
    table = _read_table(path)
    _refuse_mostly_bad(path, table)
    if config.votes_csv:
        targets, strength = _vote_targets(path, table, config, classes)
    else:  # as strong as they are true
        targets = strength = _of_classes(one_hot(np.array(table.emotions), len(_EMOTIONS)), _EMOTIONS, classes)
    usable = targets.sum(axis=1) > 0
    if not usable.all():
        logger.warning(
            "%s: %d of %d images have no label among %s and are left out",
            *(path, int((~usable).sum()), len(usable), ", ".join(classes.names)),
        )
    pixels = np.frombuffer(table.pixels, np.uint8).reshape(-1, SIDE, SIDE)
    parts = np.array([PARTS[usage.casefold()] for usage in table.usages])
    found = {}
    for part in sorted(set(parts)):
        chosen = np.flatnonzero((parts == part) & usable)
        names = [f"row {table.rows[i]}" for i in chosen]
        found[part] = Records(names, strength[chosen].argmax(axis=1), targets[chosen], pixels[chosen])
    for usage, failure in table.failures:
        part = next(part for part in (PARTS[usage.casefold()], *SPLITS, POOL) if part in found)
        found[part] = replace(found[part], failures=(*found[part].failures, failure))
    return classes.names, found


def _read_table(path: Path) -> _Table:
    console = Console(stderr=True)
    table = _Table()
    shown = {"description": f"reading {path.name}", "console": console, "transient": True}
    try:
        with progress.open(
            path, "r", encoding="utf-8-sig", newline="", disable=not console.is_terminal, **shown
        ) as file:
            lines = csv.reader(file)
            columns = [name.strip().casefold() for name in next(lines, [])]
            if missing := [name for name in ("emotion", "pixels") if name not in columns]:
                raise ValueError(
                    f"{path}: expected the columns emotion, pixels and Usage of FER2013, found no {missing[0]} among "
                    f"{', '.join(columns)[:80] or 'nothing'}; take fer2013.csv or icml_face_data.csv"
                )
            for row, line in enumerate(lines):
                _add_row(table, row, dict(zip_longest(columns, line[: len(columns)], fillvalue="")), lines.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected the FER2013 CSV file, but it cannot be read ({error})") from None
    return table


def _add_row(table: _Table, row: int, cells: dict[str, str], line: int) -> None:
    """Add a row to the table, or what is wrong with it to the failures."""
    usage, emotion = cells.get("usage", "").strip(), cells.get("emotion", "").strip()
    stage, reason = "label", ""
    if "usage" in cells and (not usage or usage.casefold() not in PARTS):
        usage, reason = "", f"expected the Usage Training, PublicTest or PrivateTest, found {usage[:40]!r}"
    elif not emotion.isdecimal() or int(emotion) >= len(_EMOTIONS):
        reason = f"expected an emotion from 0 to {len(_EMOTIONS) - 1}, found {emotion[:40]!r}"
    else:
        try:
            table.pixels += _parse_pixels(cells.get("pixels", ""))
        except ValueError as error:
            stage, reason = "pixels", str(error)
    if reason:
        table.failures.append((usage, Failure(f"row {row}", stage, f"row {row} (line {line}): {reason}")))
        return
    table.rows.append(row)
    table.emotions.append(int(emotion))
    table.usages.append(usage)


def _parse_pixels(text: str) -> bytes:
    try:
        pixels = bytes(map(_PIXELS.__getitem__, text.split()))
    except KeyError as error:
        raise ValueError(f"expected pixels of whole numbers from 0 to 255, found {error.args[0][:40]!r}") from None
    if len(pixels) != SIDE * SIDE:
        raise ValueError(f"expected {SIDE * SIDE} pixels ({SIDE} x {SIDE}), found {len(pixels)}")
    return pixels


def _refuse_mostly_bad(path: Path, table: _Table) -> None:
    bad, good = len(table.failures), len(table.rows)
    if bad > good:
        raise ValueError(
            f"{path}: {bad} of {bad + good} rows cannot be used, the first is {table.failures[0][1].reason}; "
            "take fer2013.csv as it was published"
        )
    if not good:
        raise ValueError(f"{path}: expected rows of emotion and pixels, found none; take fer2013.csv")
    if bad:
        logger.warning("%s: %d rows cannot be used, e.g. %s", path, bad, table.failures[0][1].reason)


def _of_classes(values: np.ndarray, names: Sequence[str], classes: ClassNames) -> np.ndarray:
    """Return values [N, E] of expressions by name as those of the classes float32 [N, L], 0 where they say nothing."""
    found = np.zeros((len(values), len(classes.names)), np.float32)
    for column, name in enumerate(names):
        if (index := classes.index(name)) is not None:
            found[:, index] = values[:, column]
    return found


def _vote_targets(
    path: Path, table: _Table, config: ImagesConfig, classes: ClassNames
) -> tuple[np.ndarray, np.ndarray]:
    """Return targets float32 [N, L] by the votes on the rows, and how many votes [N, L] are for what is true.

    Gives rows without a Usage that of the votes.
    """
    votes = read_votes(config.votes_csv)
    if max(table.rows) >= len(votes.usages):
        raise ValueError(
            f"{config.votes_csv}: expected votes on row {max(table.rows)} of {path}, found {len(votes.usages)} rows"
        )
    for i, row in enumerate(table.rows):
        found = votes.usages[row]
        if not found or found.casefold() not in PARTS:
            raise ValueError(
                f"{config.votes_csv}: expected the Usage Training, PublicTest or PrivateTest in row {row}, found "
                f"{found[:40]!r}; take fer2013new.csv of FER+ as it is"
            )
        table.usages[i] = table.usages[i] or found
        if table.usages[i].casefold() != found.casefold():
            raise ValueError(
                f"{config.votes_csv}: expected row {row} to be for {table.usages[i]} as in {path}, found "
                f"{found}; the votes are on another file, or one of the two was sorted anew"
            )
    counts = votes.counts[table.rows]
    truths = _TARGETS[config.votes_target](counts)
    targets = _of_classes(truths, EXPRESSIONS, classes)
    if config.votes_target == "soft":
        targets /= np.maximum(targets.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return targets, _of_classes(np.where(truths > 0, counts[:, : len(EXPRESSIONS)], 0), EXPRESSIONS, classes)
