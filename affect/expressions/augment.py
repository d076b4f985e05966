"""Random changes of training images: a pure function of the visit, so that a resumed run sees the same pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from affect.expressions.config import ImagesConfig
from affect.expressions.image_files import as_tensor, normalise, resize
from affect.expressions.samples import InputSpec


class Augmentation:
    """Crop, flip, rotation, colours and AutoAugment on the pixels, erasing on the normalised picture.

    No step works on more pixels than the network sees: larger pictures are shrunk before, smaller ones
    grow after.
    """

    def __init__(self, config: ImagesConfig, spec: InputSpec) -> None:
        self._spec = spec
        self._crop = config.crop
        gray = [round(255 * value) for value in np.broadcast_to(spec.mean, 3).tolist()]  # 0 once normalised
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip()]
        if config.rotate:
            steps.append(v2.RandomRotation(config.rotate, v2.InterpolationMode.BILINEAR, fill=gray))
        if config.color_jitter:
            steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
        if config.auto_augment:
            steps.append(v2.AutoAugment(interpolation=v2.InterpolationMode.BILINEAR, fill=gray))
        self._steps = v2.Compose(steps)
        self._erase = v2.RandomErasing(config.random_erasing, config.erasing_scale) if config.random_erasing else None

    def __call__(self, image: np.ndarray, seed: Sequence[int]) -> Tensor:
        """Return a picture uint8 RGB [H, W, 3] changed and as the network sees it: float32 [C, S, S].

        The same seed gives the same picture; the random states of the process stay as they are.
        """
        size = self._spec.size
        own = int(np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0] >> 1)
        with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed the GPU's, too, and dropout reads that
            torch.default_generator.manual_seed(own)
            pixels = as_tensor(image)
            if self._crop:
                pixels = _random_crop(pixels, 1 - self._crop)
            if pixels[0].numel() > size * size:
                pixels = resize(pixels, size)
            picture = normalise(resize(self._steps(pixels), size), self._spec)
            return self._erase(picture) if self._erase else picture


def _random_crop(pixels: Tensor, least: float) -> Tensor:
    """Return a part of [C, H, W] of the same shape that keeps at least the share `least` of its area."""
    share, top, left = torch.rand(3).tolist()
    side = (least + (1 - least) * share) ** 0.5
    height, width = (max(1, round(side * size)) for size in pixels.shape[1:])
    first_row = int(top * (pixels.shape[1] - height + 1))
    first_column = int(left * (pixels.shape[2] - width + 1))
    return pixels[:, first_row : first_row + height, first_column : first_column + width]
