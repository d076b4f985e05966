"""What passes between the parts of the image track; needs no torch until an array is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_MEAN = (0.5077,)
GRAY_STD = (0.2550,)
"""Mean and deviation of FER2013's training pixels, in units of 255."""
SEEN = 0.5
"""Probability, or share of the votes, from which on an independent (multi-label) class counts as seen."""
NONE = "none"
"""What a face is called where no independent class counts as seen."""


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see: a square picture, normalised."""

    size: int
    """Pixels a side."""
    gray: bool
    """One channel instead of RGB."""
    mean: tuple[float, ...]
    """Of each channel, pixels being 0 to 1."""
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Channels of the input tensor."""
        return 1 if self.gray else 3


@dataclass(frozen=True)
class Sample:
    """One labelled image as the network sees it."""

    name: str
    """Path below the data's root, or the row of a CSV file: what failures and galleries call it."""
    image: Tensor
    """float32 [C, S, S], normalised."""
    label: int
    """Index of the class; of the strongest one where several are true."""
    target: Tensor
    """float32 [L]: one-hot, a distribution (soft) or independent truths (multi-label)."""


@dataclass(frozen=True)
class ImageBatch:
    """Samples side by side."""

    names: list[str]
    images: Tensor
    """float32 [B, C, S, S]."""
    labels: Tensor
    """int64 [B]."""
    targets: Tensor
    """float32 [B, L]."""
