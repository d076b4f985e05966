"""Scores of one label a clip.

Conventions: a prediction of None (no label found) counts as wrong and belongs to no class;
classes without clips are left out of the means. A class that was never predicted has F1 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def confusion(truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Return counts [len(labels), len(labels) + 1]: a row a true label, a column a prediction, the last 'none'."""
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for t, p in zip(truth, predicted, strict=True):
        counts[labels.index(t), labels.index(p) if p in labels else len(labels)] += 1
    return counts


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of one label a clip."""

    means: dict[str, float]
    """acc, macro_f1 (plain mean of the classes' F1), uar (of their recall), waf (of their F1, weighted by clips)."""
    per_class: dict[str, np.ndarray]
    """f1, recall, precision and n (clips), [L] each; NaN where a class has no clip, or was never predicted."""


def classification_scores(counts: np.ndarray) -> ClassificationScores:
    """Return the scores of counts as `confusion` has them; NaN without clips."""
    from sklearn.metrics import precision_recall_fscore_support

    n = counts.sum(axis=1)
    if not n.any():  # which the library refuses
        nothing = dict.fromkeys(("f1", "recall", "precision"), np.full(len(n), np.nan))
        return ClassificationScores(dict.fromkeys(("acc", "macro_f1", "uar", "waf"), float("nan")), nothing | {"n": n})
    true, predicted = (places.ravel() for places in np.indices(counts.shape))
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=range(len(counts)), sample_weight=counts.ravel(), zero_division=np.nan
    )
    f1, known = np.where(n > 0, f1, np.nan), n > 0
    means = {
        "acc": float(counts.diagonal().sum() / n.sum()),
        "macro_f1": float(f1[known].mean()),
        "uar": float(recall[known].mean()),
        "waf": float(np.average(f1[known], weights=n[known])),
    }
    return ClassificationScores(means, {"f1": f1, "recall": recall, "precision": precision, "n": n})


def class_rows(per_class: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the scores of each class by name, its own as `label`."""
    columns = zip(classes, *(values.tolist() for values in per_class.values()), strict=True)
    return [dict(zip(("label", *per_class), column, strict=True)) for column in columns]
