"""Rows of many items through a model in batches, and back to the items they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from extractors.encoders.loading import try_out


@torch.inference_mode()
def encode_batches(
    batches: Iterable[Sequence[Any]], encode: Callable[[Sequence[Any]], torch.Tensor], dim: int
) -> np.ndarray:
    """Return float32 [sum N, dim]: what `encode` gives for each batch of N rows."""
    # nothing is fetched before all is on its way: the device computes while the next batch is put together
    parts = [encode(batch).float() for batch in batches]
    return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, dim), np.float32)


@torch.inference_mode()
def feature_width(encode: Callable[[Sequence[Any]], torch.Tensor], row: Any, name: str, source: str) -> int:
    """Return D of the features [N, D] that `encode` gives.

    Raises WeightsError where it gives something else, or two answers for the same row (models
    that hide parts of it at random).
    """

    def width() -> int:
        features = encode([row, row])
        if features.ndim != 2 or len(features) != 2 or not features.isfinite().all():
            raise ValueError(f"it gives {list(features.shape)} for two rows instead of finite [2, D]")
        if (features[0] - features[1]).abs().max() > 0.02 * features.abs().max():
            raise ValueError("it gives another answer each time")
        return features.shape[1]

    return try_out(width, name, source)


def split_rows(rows: np.ndarray, items: Sequence[Sequence[Any] | None]) -> list[np.ndarray]:
    """Give the rows of a batch [sum T, D] back to the items they came from, as float32 [T, D] each."""
    lengths = [0 if item is None else len(item) for item in items]
    return np.split(rows, np.cumsum(lengths)[:-1]) if items else []


def chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield slices of at most `size` rows, which bounds the memory of one forward pass."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
