"""What encoders with weights share: rows of many items go through a model in batches, and back to their items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from extractors.encoders.loading import precision, try_out


class PretrainedEncoder:
    """An encoder whose `_encode` gives features [N, D] for N rows: pictures, sound clips or sentences.

    A subclass loads its model in the precision of the device and then calls `_try_out` with a row.
    """

    family: str
    rows_at_once = 64
    """Most rows of one forward pass, which bounds its memory."""
    libraries: tuple[ModuleType, ...] = (torch,)

    def __init__(self, name: str, source: str, device: str) -> None:
        self.name = name
        self._source, self._device, self._dtype = source, device, precision(device)

    @torch.inference_mode()
    def __call__(self, items: Sequence[Sequence[Any] | None]) -> list[np.ndarray]:
        """Return float32 [T, D] for each prepared item of T rows, [0, D] for None."""
        rows = [row for item in items if item is not None for row in item]
        # nothing is fetched before all is on its way: the device computes while the next batch is put together
        parts = [self._encode(batch).float() for batch in self._batches(rows)]
        features = torch.cat(parts).cpu().numpy() if parts else np.zeros((0, self.dim), np.float32)
        lengths = [0 if item is None else len(item) for item in items]
        return np.split(features, np.cumsum(lengths)[:-1]) if items else []

    def _encode(self, rows: Sequence[Any]) -> torch.Tensor:
        raise NotImplementedError

    def _batches(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(rows), self.rows_at_once):
            yield rows[start : start + self.rows_at_once]

    @torch.inference_mode()
    def _try_out(self, row: Any, weights: str) -> None:
        """Set the width of the features and the hash of the weights.

        Raises WeightsError where the model gives no features [N, D], or two answers for the same row (models that
        hide parts of it at random).
        """

        def width() -> int:
            features = self._encode([row, row])
            if features.ndim != 2 or len(features) != 2 or not features.isfinite().all():
                raise ValueError(f"it gives {list(features.shape)} for two rows instead of finite [2, D]")
            if (features[0] - features[1]).abs().max() > 0.02 * features.abs().max():
                raise ValueError("it gives another answer each time")
            return features.shape[1]

        self.dim = try_out(width, self.name, self._source)
        self._hash = weights

    def _provenance(self, layer: str, pooling: str, preprocessing: str) -> dict[str, Any]:
        return {
            "family": self.family,
            "weights": self._hash,
            "layer": layer,
            "pooling": pooling,
            "preprocessing": preprocessing,
            "precision": str(self._dtype).removeprefix("torch."),
            "versions": {library.__name__: library.__version__ for library in self.libraries},
        }
