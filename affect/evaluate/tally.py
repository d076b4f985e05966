"""Scores as sums over clips, so that clips can be drawn anew: confidence intervals and paired tests.

Intervals are percentiles of bootstrap replicates (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993);
the paired test swaps the two systems' answers clip by clip at random (Noreen, "Computer-Intensive Methods for
Testing Hypotheses", 1989).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
class Score:
    """The scores of answers to one test set."""

    values: dict[str, float]
    """The first one counts in the benchmark: hitrate, waf or fscore."""
    n: int
    """Clips that count; each wheel may leave out more."""
    clips: int
    """Clips of the test set."""
    tally: Tally
    """Of the first score, to draw clips anew."""
    per_wheel: list[dict[str, Any]] = field(default_factory=list)
    """Of each wheel its number, its scores, and the n clips that they are means over."""
    labels_from: str = ""

    @property
    def metric(self) -> str:
        """Name of the score that counts."""
        return next(iter(self.values))

    @property
    def first(self) -> float:
        """The score that counts."""
        return self.values[self.metric]


@dataclass(frozen=True)
class Comparison:
    """A score of two systems on the same clips."""

    first: float
    second: float
    difference: float
    """first - second."""
    low: float
    high: float
    """Interval of the difference."""
    p: float
    """Chance of so large a difference, either way, between two systems that do not differ."""


def replicates(tallies: Sequence[Tally], draws: int, seed: int) -> np.ndarray:
    """Return the mean score of some data sets for clips drawn anew with replacement within each: [draws]."""
    return _resampled([[tally] for tally in tallies], draws, seed)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of replicates [draws]; NaN replicates are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all replicates NaN: so is the interval
        low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(first: Sequence[Tally], second: Sequence[Tally], draws: int, seed: int) -> Comparison:
    """Compare the mean score of two systems over one or more data sets, clip by clip.

    Raises ValueError when the two do not have the same clips.
    """
    pairs = list(zip(first, second, strict=True))
    if any(a.names != b.names for a, b in pairs):
        raise ValueError("two systems are compared on the same clips: expected the same names in both, found others")
    one, other = (float(np.mean([tally.value for tally in tallies])) for tallies in (first, second))
    rng = np.random.default_rng(seed)
    swapped = np.mean([_swapped(rng, draws, a, b) for a, b in pairs], axis=0)
    as_large = np.sum(np.abs(swapped) >= abs(one - other) - 1e-12)
    p = float((1 + as_large) / (1 + draws)) if one - other == one - other else float("nan")
    return Comparison(one, other, one - other, *interval(_resampled(pairs, draws, seed)), p)


def _resampled(sets: Sequence[Sequence[Tally]], draws: int, seed: int) -> np.ndarray:
    """Return the mean over data sets of the score of one tally, or of two tallies' difference, [draws].

    Two tallies of a set are scored on the same drawn clips.
    """
    from scipy.stats import bootstrap

    sizes = [len(tallies[0].names) for tallies in sets]
    if not all(sizes):
        return np.full(draws, np.nan)

    def mean_of(*drawn: np.ndarray, axis: int) -> np.ndarray:
        scores = []
        for tallies, size, clips in zip(sets, sizes, drawn, strict=True):
            rows = clips.reshape(-1, clips.shape[-1])
            starts = size * np.arange(len(rows))[:, None]
            times = np.bincount((rows + starts).ravel(), minlength=size * len(rows)).reshape(*clips.shape[:-1], size)
            one, *other = (tally.score(times @ tally.counts) for tally in tallies)
            scores.append(one - other[0] if other else one)
        return np.mean(scores, axis=0)

    # of a single clip two are drawn, for the library wants two: its scores are ratios of sums
    clips = [np.arange(max(size, 2)) % size for size in sizes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where a draw has no score, for `interval` leaves it out
        drawn = bootstrap(clips, mean_of, n_resamples=draws, batch=_BATCH, method="percentile", rng=seed)
    return drawn.bootstrap_distribution


def _swapped(rng: np.random.Generator, draws: int, first: Tally, second: Tally) -> np.ndarray:
    """Return the differences [draws] when each clip's two answers change sides with a chance of one half.

    Not scipy's permutation_test: that doubles the smaller tail instead of counting both, and wants two clips.
    """
    gap = second.counts - first.counts
    parts = []
    for start in range(0, draws, _BATCH):
        moved = rng.integers(0, 2, size=(min(_BATCH, draws - start), len(gap))).astype(float) @ gap
        parts.append(first.score(first.counts.sum(axis=0) + moved) - second.score(second.counts.sum(axis=0) - moved))
    return np.concatenate(parts)
