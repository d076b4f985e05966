"""Positive or not: sentiment words against valences, as MOSI, MOSEI, SIMS and SIMSv2 are scored.

Conventions: clips with a valence of 0 are left out; exactly "positive" says positive, anything else, "Positive"
and "neutral" included, does not; a valence of NaN stays in and is not positive, as published (the tool refuses it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from affect.data.known_datasets import POSITIVE
from affect.evaluate.errors import LabelError, NothingToScoreError, require_names
from affect.evaluate.tally import Tally


@dataclass(frozen=True)
class SentimentScores:
    """Scores of the binary question, the number of clips with a valence other than 0, and what they were made of."""

    waf: float
    """F1 of the two classes, weighted by their clips (0 where a class is neither there nor answered)."""
    acc: float
    n: int
    tally: Tally
    """Of `waf`, to draw clips anew."""


def sentiment_scores(truth: Mapping[str, float], answers: Mapping[str, Any]) -> SentimentScores:
    """Return weighted F1 and accuracy of name -> "positive" / "negative" / "neutral" against name -> valence.

    Raises MissingNamesError, LabelError for a valence that is no number, NothingToScoreError when no valence
    differs from 0.
    """
    require_names(truth, "answer", answers)
    for name, valence in truth.items():
        if not isinstance(valence, Real) or isinstance(valence, bool):
            raise LabelError(f"clip {name!r} has the valence {valence!r}: expected a number, e.g. -0.4")
    names = [name for name, valence in truth.items() if valence != 0]
    if not names:
        raise NothingToScoreError("every valence is 0: expected some clips that are positive or negative")
    true = np.array([truth[name] > 0 for name in names])
    found = np.array([answers[name] == POSITIVE for name in names])
    counts = np.stack([true & found, ~true & found, true & ~found, ~true & ~found], axis=1).astype(float)
    sums = counts.sum(axis=0)
    return SentimentScores(
        waf=float(_waf_of_sums(sums)),
        acc=float((sums[0] + sums[3]) / len(names)),
        n=len(names),
        tally=Tally(names, counts, _waf_of_sums),
    )


def _waf_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the weighted F1 [...] of sums [..., (both, only found, only true, neither)] of "positive"."""
    both, only_found, only_true, neither = np.moveaxis(sums, -1, 0)
    wrong = only_found + only_true
    positive, negative = (2 * right / np.maximum(2 * right + wrong, 1e-300) for right in (both, neither))
    count = np.moveaxis(sums, -1, 0).sum(axis=0)
    return ((both + only_true) * positive + (neither + only_found) * negative) / count
