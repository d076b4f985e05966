"""The way of a picture into a model: its shape by Pillow where decode workers are, its values on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from extractors.encoders.prepare import PictureShape, as_it_is
from extractors.encoders.pretrained import WeightsError

# odd and even margins, wide and high, smaller and larger than what models take
_PROBE_SIZES = ((1, 1), (3, 40), (40, 3), (17, 31), (288, 360), (301, 200))


class PictureInput:
    """Does what a model's own preprocessing does, in two parts: `prepare` and `pixels`.

    shape: the guess at its resizing and cutting; own_shape: the same by the library, uint8 [T, H, W, 3]
    in and uint8 [T, h, w, 3] out; own_pixels: all of it by the library, float [T, 3, h, w] out. Where
    the guess is not exactly the library's, `prepare` does nothing and the library shapes the pictures
    in `pixels`. Raises WeightsError for preprocessing that does anything else.
    """

    def __init__(
        self,
        shape: PictureShape,
        own_shape: Callable[[np.ndarray], np.ndarray],
        own_pixels: Callable[[np.ndarray], np.ndarray],
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
    ) -> None:
        self._scale, self._mean, self._std = scale, torch.tensor(mean), torch.tensor(std)
        height, width = self.size = own_shape(_noise((1, 1))[None]).shape[1:3]
        # margins of 3 pixels tell the ways of rounding apart
        sizes = (*_PROBE_SIZES, (height, width + 3), (height + 3, width))
        probes = [_noise(size)[None] for size in sizes]
        shaped = [own_shape(probe) for probe in probes]
        for probe, picture in zip(probes, shaped, strict=True):
            if picture.dtype != np.uint8 or picture.shape != (1, *self.size, 3):
                raise WeightsError(
                    f"encoder {name}: its preprocessing makes {picture.dtype} {list(picture.shape)} of a picture "
                    f"{list(probe.shape)}; expected pictures of one size in whole numbers, so use another model"
                )
            values = self.values(picture, "cpu", torch.float32).numpy()
            if not np.allclose(values, own_pixels(probe), atol=1e-5):
                raise WeightsError(
                    f"encoder {name}: its preprocessing does more than resize, cut, rescale and normalise; expected "
                    "nothing else, so use another model"
                )
        exact = all(np.array_equal(shape(probe), picture) for probe, picture in zip(probes, shaped, strict=True))
        self.prepare: Callable[[np.ndarray], np.ndarray] = shape if exact else as_it_is
        self._own_shape = as_it_is if exact else own_shape

    def __str__(self) -> str:
        size = f"{self.size[0]} x {self.size[1]} by the model's own preprocessing"
        mean, std = (", ".join(f"{x:.4g}" for x in values.tolist()) for values in (self._mean, self._std))
        return (
            f"{size if self.prepare is as_it_is else self.prepare}, times {self._scale:.4g}, mean ({mean}), std ({std})"
        )

    def example(self) -> np.ndarray:
        """Return a prepared frame of noise, uint8 [h, w, 3]."""
        return _noise(self.size)

    def pixels(self, frames: Sequence[np.ndarray], device: str, dtype: torch.dtype) -> torch.Tensor:
        """Return [N, 3, h, w] of N prepared frames uint8 [H, W, 3]; raises ValueError for frames that are not."""
        if self.prepare is not as_it_is and (wrong := {frame.shape for frame in frames} - {(*self.size, 3)}):
            raise ValueError(
                f"frames of shape {list(wrong.pop())}: expected {[*self.size, 3]}; pass them through `prepare` first"
            )
        return self.values(np.concatenate([self._own_shape(frame[None]) for frame in frames]), device, dtype)

    def values(self, pictures: np.ndarray, device: str, dtype: torch.dtype) -> torch.Tensor:
        """Return [N, 3, h, w] of pictures uint8 [N, h, w, 3], computed on the device in float32."""
        mean, std = (values.to(device)[:, None, None] for values in (self._mean, self._std))
        pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).contiguous().float()
        return pixels.mul_(self._scale).sub_(mean).div_(std).to(dtype)


def _noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
