"""What encoders with weights share: weights told of in one sentence, rows of many items in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from affect.core.device import half_precision
from affect.core.weights import OWN_CODE, why_offline

# what the libraries raise on folders and models that are not what they expect
_LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError)


class WeightsError(ValueError):
    """Weights that are not there or do not fit the encoder."""


def numbers(device: str, precision: str | None = None) -> torch.dtype:
    """Return what a device computes in: as asked, or float32, on CUDA bfloat16, or float16 where it is older.

    Raises WeightsError for a CUDA device on a machine where torch finds none.
    """
    if torch.device(device).type != "cuda":
        return getattr(torch, precision or "float32")
    if not torch.cuda.is_available():
        raise WeightsError(
            f"device {device} is asked for, but torch finds no GPU here; expected a CUDA build of torch and a driver, "
            "so install both or use the device cpu"
        )
    if precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # or convolutions would be rounded to 10 bits
    return getattr(torch, precision) if precision else half_precision()


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return OWN_CODE
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


class PretrainedEncoder:
    """An encoder whose `_encode` gives features [N, D] for N rows: pictures, sound clips or sentences.

    A subclass loads its model (`_load`) in the precision of the device and then calls `_try_out` with a row.
    """

    family: str
    rows_at_once = 64
    """Most rows of one forward pass, which bounds its memory."""
    libraries: tuple[ModuleType, ...] = (torch,)

    def __init__(self, name: str, source: str, device: str, precision: str | None) -> None:
        self.name = name
        self._source, self._device, self._dtype = source, device, numbers(device, precision)
        self._offline = why_offline(source)

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

    def _load(self, load: Callable[[], Any]) -> Any:
        """Return `load()`, which reads from the source; raises WeightsError that says where to put the weights."""
        try:
            return load()
        except _LIBRARY_ERRORS as error:
            absent = Path(self._source).is_absolute() and not Path(self._source).exists()
            reason = "no such folder" if absent else _reason(error)
            if self._offline:
                reason = f"{self._offline}; {reason.split('. ')[0]}"
            hint = "download the weights"
            if self.name.isidentifier():
                hint += (
                    f", then set AFFECT_{self.name.upper()} to it or add a line '{self.name}: folder' to the YAML file "
                    "that AFFECT_WEIGHTS names"
                )
            raise WeightsError(
                f"encoder {self.name}: no usable weights at {self._source!r} ({reason}); "
                f"expected a local folder or a hub id that can be reached: {hint}"
            ) from error

    def _use(self, use: Callable[[], Any]) -> Any:
        """Return `use()`, the first use of what was loaded; raises WeightsError where it fails."""
        try:
            return use()
        except WeightsError:
            raise
        except _LIBRARY_ERRORS as error:
            raise WeightsError(
                f"encoder {self.name}: the model at {self._source!r} cannot be used ({_reason(error)}); expected one "
                "that makes one row of each frame, sound clip or sentence, so use another model"
            ) from error

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

        self.dim = self._use(width)
        self._hash = weights

    def _provenance(self, layer: str, pooling: str, preprocessing: str) -> dict[str, Any]:
        return {
            "family": self.family,
            "weights": self._hash,
            "layer": layer,
            "pooling": pooling,
            "preprocessing": preprocessing,
            "precision": str(self._dtype).removeprefix("torch."),
            "device": torch.device(self._device).type,
            "versions": {library.__name__: library.__version__ for library in self.libraries},
        }
