"""Scores of one label a clip.

Conventions: a prediction of None (no label found) counts as wrong and belongs to no class;
classes without clips are left out of the means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy(truth: Sequence[str], predicted: Sequence[str | None]) -> float:
    """Return the share of clips whose label is right; NaN without clips."""
    if not truth:
        return float("nan")
    return float(np.mean([t == p for t, p in zip(truth, predicted, strict=True)]))


def confusion(truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Return counts [len(labels), len(labels) + 1]: a row a true label, a column a prediction, the last 'none'."""
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for t, p in zip(truth, predicted, strict=True):
        counts[labels.index(t), labels.index(p) if p in labels else len(labels)] += 1
    return counts
