"""Positive or not: sentiment words against valences, as MOSI, MOSEI, SIMS and SIMSv2 are scored.

Conventions: clips with a valence of 0 are left out; exactly "positive" says positive, anything else, "Positive"
and "neutral" included, does not; a valence of NaN stays in and is not positive, as published (the tool refuses it).
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from affect.data.known_datasets import POSITIVE
from affect.evaluate.errors import LabelError, NothingToScoreError, require_names
from affect.evaluate.tally import Score, Tally


def sentiment_scores(truth: Mapping[str, float], answers: Mapping[str, Any]) -> Score:
    """Return waf (F1 of both classes, weighted by their clips; 0 where one is neither there nor answered) and acc.

    answers: name -> "positive" / "negative" / "neutral"; truth: name -> valence; n: clips whose valence is not 0.
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
    tally = Tally(names, counts, _waf_of_sums)
    acc = float((counts[:, 0] + counts[:, 3]).sum() / len(names))
    return Score({"waf": tally.value, "acc": acc}, len(names), len(truth), tally)


def _waf_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the weighted F1 [...] of sums [..., (both, only found, only true, neither)] of "positive"."""
    both, only_found, only_true, neither = np.moveaxis(sums, -1, 0)
    wrong = only_found + only_true
    positive, negative = (2 * right / np.maximum(2 * right + wrong, 1e-300) for right in (both, neither))
    count = np.moveaxis(sums, -1, 0).sum(axis=0)
    return ((both + only_true) * positive + (neither + only_found) * negative) / count
