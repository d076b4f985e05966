"""Labelled images before they become a data set: where they are, what they show, and how they are split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from affect.core.failures import Failure

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
POOL = "all"
"""Part of a data set that nobody has split yet."""


@dataclass(frozen=True)
class Records:
    """N labelled images of one part of a data set."""

    names: list[str]
    """[N] paths below the data's root, or rows of a CSV file."""
    labels: np.ndarray
    """int64 [N], the strongest class of each image."""
    targets: np.ndarray
    """float32 [N, L]."""
    source: Path | np.ndarray
    """The folder that the names are below, or gray pixels uint8 [N, H, W]."""
    failures: tuple[Failure, ...] = ()
    """What was found but cannot be used; not among the N."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the images of these places; failures stay."""
        indices = np.asarray(indices, int)
        source = self.source if isinstance(self.source, Path) else self.source[indices]
        names = [self.names[i] for i in indices]
        return replace(self, names=names, labels=self.labels[indices], targets=self.targets[indices], source=source)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels [N] as targets float32 [N, L]."""
    return np.eye(classes, dtype=np.float32)[labels]


def arrange(
    parts: Mapping[str, Records], val_split: float, test_split: float, seed: int, where: str
) -> dict[str, Records]:
    """Return train, val and test of a data set as far as there are any, from the parts that it comes in.

    One part alone (`all`, or train) is cut into three. Without a val part, val_split of train becomes it;
    with val_split 0 the test part validates, too. `where` names the data in the warning.
    """
    parts = dict(parts)
    if POOL in parts or set(parts) == {"train"}:
        (pool,) = parts.values()
        test, val, train = stratified_cut(pool, (test_split, val_split), seed)
        parts = {"train": train, "val": val, "test": test}
    elif "train" in parts and "val" not in parts:
        if val_split > 0:
            parts["val"], parts["train"] = stratified_cut(parts["train"], (val_split,), seed)
        else:
            logger.warning("%s: val_split is 0 and there is no val part: test validates, so its scores flatter", where)
            parts["val"] = parts["test"]
    return {split: parts[split] for split in SPLITS if split in parts and len(parts[split])}


def stratified_cut(records: Records, shares: Sequence[float], seed: int) -> list[Records]:
    """Return one part for each share and the rest, every class in the same proportion.

    The parts depend on the seed and the names alone, not on the order of the listing or of the classes. A
    class of two images or more leaves at least one to the rest, and gives one to a part of a share above 0.
    """
    names = np.array(records.names)
    part_of = np.full(len(records), len(shares))
    for label in np.unique(records.labels):
        members = np.flatnonzero(records.labels == label)
        members = members[np.argsort(names[members])]
        order = members[np.random.default_rng(seed).permutation(len(members))]
        start = 0
        for part, share in enumerate(shares):
            wanted = max(1, round(share * len(members))) if share > 0 else 0
            stop = min(start + wanted, len(members) - 1)
            part_of[order[start:stop]] = part
            start = stop
    cut = [records.take(np.flatnonzero(part_of == part)) for part in range(len(shares) + 1)]
    # what failed belongs to the data as a whole: it is told once, with the rest
    return [replace(part, failures=()) for part in cut[:-1]] + cut[-1:]
