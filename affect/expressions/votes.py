"""Votes of ten people on each image of FER2013 (FER+; Barsoum et al., ICMI 2016, arXiv 1608.01041), made into targets.

As FER+'s own reader counts: a vote that nobody shares is an outlier and does not count, and an image has no
target where most votes say that it is unknown or no face.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affect.core.reading import reading

EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
NO_EXPRESSION = ("unknown", "NF")
"""The last two columns: not to be told, and no face."""
MULTI_LABEL_SHARE = 0.3

_COLUMNS = ("Usage", "Image name", *EXPRESSIONS, *NO_EXPRESSION)


@dataclass(frozen=True)
class Votes:
    """Votes on the images of FER2013; row i is about row i of its CSV file."""

    counts: np.ndarray
    """int64 [N, 10] votes for EXPRESSIONS and NO_EXPRESSION."""
    usages: list[str]
    """[N] Training, PublicTest or PrivateTest."""


def read_votes(path: str | Path) -> Votes:
    """Return the votes of fer2013new.csv (raises ValueError naming file and line for anything else).

    The label.csv files of FER+'s image folders do not serve: they leave out images without a face, so
    neither their lines nor the numbers in their names are rows of the FER2013 CSV file.
    """
    path = Path(path)
    with reading(path, "the votes of FER+"):
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
        found = [column.strip().casefold() for column in lines[0]] if lines else []
        if found != [column.casefold() for column in _COLUMNS]:
            given = ", ".join(found)[:80] or "an empty file"
            raise ValueError(
                f"{path}: expected the columns {', '.join(_COLUMNS)}, found {given}; take fer2013new.csv of FER+"
            )
        counts = []
        for number, line in enumerate(lines[1:], start=2):
            votes = [int(cell) for cell in line[2:] if cell.strip().isdecimal()]
            if len(votes) != len(_COLUMNS) - 2 or len(line) != len(_COLUMNS):
                raise ValueError(
                    f"{path} line {number}: expected usage, image and {len(_COLUMNS) - 2} numbers of votes, "
                    f"found {','.join(line)[:80] or 'nothing'}; take the file of FER+ as it is"
                )
            counts.append(votes)
        return Votes(np.array(counts, np.int64).reshape(-1, len(_COLUMNS) - 2), [line[0].strip() for line in lines[1:]])


def majority(counts: np.ndarray) -> np.ndarray:
    """Return the expression with more than half of the votes [N, 10] as float32 [N, 8], one-hot.

    A row is 0 where there is none; a tie is no majority.
    """
    shared = _shared(counts)
    clear = 2 * shared.max(axis=1) > shared.sum(axis=1)
    return _where(clear, shared == shared.max(axis=1, keepdims=True), shared)


def soft(counts: np.ndarray) -> np.ndarray:
    """Return the distribution of votes [N, 10] over the expressions as float32 [N, 8].

    A row is 0 where at most half of the votes are for expressions.
    """
    shared = _shared(counts)
    expressions = shared[:, : len(EXPRESSIONS)].sum(axis=1)
    return _where(2 * expressions > shared.sum(axis=1), shared / np.maximum(expressions, 1)[:, None], shared)


def multi_label(counts: np.ndarray) -> np.ndarray:
    """Return which expressions are true of each image by its votes [N, 10] as float32 [N, 8].

    True is what has at least 30 % of the votes: the paper's threshold, as FER+'s reader applies it. A row is 0
    where all that reach it hold at most half of the votes together.
    """
    shared = _shared(counts)
    total = shared.sum(axis=1)
    enough = (shared > 0) & (shared >= MULTI_LABEL_SHARE * total[:, None])
    return _where(2 * np.where(enough, shared, 0).sum(axis=1) > total, enough, shared)


def _shared(counts: np.ndarray) -> np.ndarray:
    """Return votes without those that stand alone."""
    return np.where(counts > 1, counts, 0)


def _where(usable: np.ndarray, targets: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return targets [N, 10] as float32 [N, 8], 0 where they are not usable or most votes are for no expression."""
    usable = usable & (shared.argmax(axis=1) < len(EXPRESSIONS))
    return np.where(usable[:, None], targets[:, : len(EXPRESSIONS)], 0).astype(np.float32)
