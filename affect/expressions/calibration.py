"""Whether a network is as often right as it is sure: expected calibration error and reliability diagram.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): bins of equal width over the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affect.core.plots import new_figure, save_figure

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """How often answers are right, by how sure the network is of them."""

    edges: np.ndarray
    """[K + 1] A bin holds what is above its lower and at most its upper edge; the first one holds 0, too."""
    counts: np.ndarray
    """[K] Answers in each bin."""
    confidence: np.ndarray
    """[K] Their mean confidence; NaN in an empty bin."""
    accuracy: np.ndarray
    """[K] Share of them that is right; NaN in an empty bin."""
    without: int
    """Answers with NaN for a confidence, which are in no bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence over the answers; NaN without any."""
        filled = self.counts > 0
        if not filled.any():
            return float("nan")
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.counts[filled]))

    def rows(self) -> list[dict[str, float | int]]:
        """Return each bin: from, to, n (answers), confidence (mean) and accuracy."""
        columns = (self.edges[:-1], self.edges[1:], self.counts, self.confidence, self.accuracy)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(("from", "to", "n", "confidence", "accuracy"), row, strict=True)) for row in rows]


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Return how often answers with a confidence [N] in 0..1 are right [N] (true or false), bin by bin.

    Raises ValueError for a confidence outside 0..1.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    known = ~np.isnan(confidence)
    confidence, right = confidence[known], right[known]
    if confidence.size and (confidence.min() < 0 or confidence.max() > 1 + 1e-6):
        raise ValueError(
            f"expected confidences of 0 to 1, found {confidence.min():g} to {confidence.max():g}; give probabilities"
        )
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(places, weights=values, minlength=bins) for values in (confidence, right))
        mean_confidence, accuracy = (total / counts for total in sums)
    return Reliability(edges, counts, mean_confidence, accuracy, int((~known).sum()))


def draw_reliability(
    path: Path, found: Reliability, title: str = "", confidence: str = "confidence", accuracy: str = "share right"
) -> Path:
    """Draw accuracy over confidence and, below, how many answers each bin holds; return the path.

    An empty bin has no bar but a small cross on the axis. `confidence` and `accuracy` name the axes.
    """
    layout = {"sharex": True, "height_ratios": (3, 1), "gridspec_kw": {"hspace": 0.08}}
    figure, (above, below) = new_figure((5.2, 6), 2, **layout)
    width = np.diff(found.edges)
    middle = found.edges[:-1] + width / 2
    filled = found.counts > 0
    bars = {"width": 0.94 * width[filled], "align": "center"}
    above.bar(middle[filled], found.accuracy[filled], color="tab:blue", label=accuracy, **bars)
    gaps = found.confidence[filled] - found.accuracy[filled]
    hatched = {"color": "none", "edgecolor": "tab:red", "hatch": "////", "linewidth": 0.8}
    above.bar(middle[filled], gaps, bottom=found.accuracy[filled], label=f"gap to {confidence}", **bars, **hatched)
    above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfectly calibrated")
    above.plot(middle[~filled], np.full((~filled).sum(), 0.015), "x", color="gray", markersize=5, label="no answers")
    without = f", {found.without} without a number" if found.without else ""
    above.set_title(f"{title}\nECE {100 * found.ece:.2f} %, {found.counts.sum()} answers{without}".strip(), fontsize=10)
    above.set(ylabel=accuracy, xlim=(0, 1), ylim=(0, 1))
    above.legend(loc="upper left", fontsize=8)
    above.grid(alpha=0.3)
    below.bar(middle[filled], found.counts[filled], color="tab:gray", **bars)
    for x, count in zip(middle[filled], found.counts[filled], strict=True):
        below.text(x, count, f"{count}", ha="center", va="bottom", fontsize=6)
    below.set(xlabel=confidence, ylabel="answers", ylim=(0, 1.2 * max(1, found.counts.max())))
    return save_figure(figure, path)
