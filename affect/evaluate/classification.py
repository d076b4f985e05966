"""Scores of one label a clip.

Conventions: a prediction of None (no label found) counts as wrong and belongs to no class;
classes without clips are left out of the means. A class that was never predicted has F1 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def recall_and_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each label's share of found clips and of right predictions, [L] each, of counts as `confusion` has them.

    NaN where a label has no clip, or was never predicted.
    """
    right = counts.diagonal()
    with np.errstate(invalid="ignore"):
        return right / counts.sum(axis=1), right / counts[:, : len(right)].sum(axis=0)


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of one label a clip."""

    acc: float
    macro_f1: float
    """Plain mean of the classes' F1."""
    uar: float
    """Unweighted average recall: the plain mean of the classes' recall."""
    waf: float
    """Mean of the classes' F1, weighted by their clips."""
    f1: np.ndarray
    """[L] F1 of each class; NaN where a class has no clip."""


def classification_scores(counts: np.ndarray) -> ClassificationScores:
    """Return the scores of counts as `confusion` has them; NaN without clips."""
    right, clips = counts.diagonal(), counts.sum(axis=1)
    predicted = counts[:, : len(right)].sum(axis=0)
    with np.errstate(invalid="ignore"):
        f1 = np.where(clips > 0, 2 * right / (clips + predicted), np.nan)
    known = clips > 0
    if not known.any():
        return ClassificationScores(*[float("nan")] * 4, f1=f1)
    recall, _ = recall_and_precision(counts)
    return ClassificationScores(
        acc=float(right.sum() / clips.sum()),
        macro_f1=float(f1[known].mean()),
        uar=float(recall[known].mean()),
        waf=float((f1[known] * clips[known]).sum() / clips.sum()),
        f1=f1,
    )
