"""What decode workers do to an item before it goes to an encoder: plain functions that need no torch."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def as_it_is(item: Item) -> Item:
    """Return the item: for encoders that have nothing to prepare."""
    return item


def level_together(clips: np.ndarray | None) -> np.ndarray | None:
    """Bring all sound clips [C, N] of one item together to mean 0 and variance 1, as float32; None stays None.

    A quiet clip stays quieter than a loud one. The constant is that of wav2vec2's feature extractor.
    """
    if clips is None or len(clips) == 0:
        return clips
    return ((clips - clips.mean()) / np.sqrt(clips.var() + 1e-7)).astype(np.float32, copy=False)
