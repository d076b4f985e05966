"""Scores as sums over clips, so that clips can be drawn anew: confidence intervals and paired tests.

Intervals are percentiles of bootstrap replicates (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993);
the paired test swaps the two systems' answers clip by clip at random (Noreen, "Computer-Intensive Methods for
Testing Hypotheses", 1989).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from affect.evaluate.errors import ScoreError

LEVEL = 0.95
"""Share of the replicates inside an interval."""
_BATCH = 200
"""Replicates made at once, to bound the memory."""


@dataclass(frozen=True)
class Tally:
    """What each clip adds to a score, and how the sums become the score."""

    names: list[str]
    counts: np.ndarray
    """[N, K], a row a clip."""
    score: Callable[[np.ndarray], np.ndarray]
    """Sums over clips [..., K] -> score [...]."""

    @property
    def value(self) -> float:
        """Score of all clips."""
        return float(self.score(self.counts.sum(axis=0)))


@dataclass(frozen=True)
class Comparison:
    """A score of two systems on the same clips."""

    first: float
    second: float
    low: float
    high: float
    """Interval of the difference first - second."""
    p: float
    """Chance of so large a difference, either way, between two systems that do not differ."""


def replicates(tallies: Sequence[Tally], draws: int, seed: int) -> np.ndarray:
    """Return the mean score of some data sets for clips drawn anew with replacement within each: [draws]."""
    rng = np.random.default_rng(seed)
    return np.mean([_resampled(rng, draws, tally)[0] for tally in tallies], axis=0)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of replicates [draws]; NaN replicates are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all replicates NaN: so is the interval
        low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(first: Sequence[Tally], second: Sequence[Tally], draws: int, seed: int) -> Comparison:
    """Compare the mean score of two systems over one or more data sets, clip by clip.

    Raises ScoreError when the two do not have the same clips.
    """
    for a, b in zip(first, second, strict=True):
        if a.names != b.names:
            raise ScoreError(
                "two systems are compared on the same clips: expected the same names in both, found others"
            )
    rng = np.random.default_rng(seed)
    drawn = np.mean([np.subtract(*_resampled(rng, draws, a, b)) for a, b in zip(first, second, strict=True)], axis=0)
    swapped = np.mean([_swapped(rng, draws, a, b) for a, b in zip(first, second, strict=True)], axis=0)
    values = [float(np.mean([tally.value for tally in tallies])) for tallies in (first, second)]
    difference = abs(values[0] - values[1])
    as_large = np.sum(np.abs(swapped) >= difference - 1e-12)
    p = float((1 + as_large) / (1 + draws)) if difference == difference else float("nan")
    return Comparison(*values, *interval(drawn), p)


def _resampled(rng: np.random.Generator, draws: int, *tallies: Tally) -> list[np.ndarray]:
    """Return the scores [draws] of tallies of the same clips, all for the same drawn clips."""
    count = len(tallies[0].names)
    if not count:
        return [np.full(draws, np.nan) for _ in tallies]
    parts: list[list[np.ndarray]] = [[] for _ in tallies]
    for start in range(0, draws, _BATCH):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(_BATCH, draws - start)).astype(float)
        for part, tally in zip(parts, tallies, strict=True):
            part.append(tally.score(weights @ tally.counts))
    return [np.concatenate(part) for part in parts]


def _swapped(rng: np.random.Generator, draws: int, first: Tally, second: Tally) -> np.ndarray:
    """Return the differences [draws] when each clip's two answers change sides with a chance of one half."""
    gap = second.counts - first.counts
    parts = []
    for start in range(0, draws, _BATCH):
        moved = rng.integers(0, 2, size=(min(_BATCH, draws - start), len(gap))).astype(float) @ gap
        parts.append(first.score(first.counts.sum(axis=0) + moved) - second.score(second.counts.sum(axis=0) - moved))
    return np.concatenate(parts)
