"""What decode workers do to an item before it goes to an encoder: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from affect.expressions.samples import InputSpec

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


@dataclass(frozen=True)
class PictureShape:
    """Resizing and central cutting of pictures by Pillow; what lies outside a picture is black."""

    size: int | tuple[int, int] | None
    """Length of the shorter edge, or (height, width), or None where nothing is resized."""
    cut: tuple[int, int] | None = None
    """(height, width) of the central part that is kept, or None for the whole picture."""
    resample: int = Image.Resampling.BICUBIC
    """Pillow's number of the filter."""
    half_pixels: Literal["down", "even"] = "down"
    """Where the cut begins when margins are uneven: transformers goes down, torchvision to the even pixel."""

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return uint8 [T, h, w, 3] of RGB frames uint8 [T, H, W, 3]."""
        if len(frames) == 0:
            size = self.size if isinstance(self.size, tuple) else frames.shape[1:3]
            return np.zeros((0, *(self.cut or size), 3), np.uint8)
        return np.stack([self._cut(self._resize(frame)) for frame in frames])

    def __str__(self) -> str:
        steps = []
        if self.size is not None:
            target = f"shorter edge {self.size}" if isinstance(self.size, int) else f"{self.size[0]} x {self.size[1]}"
            steps.append(f"{Image.Resampling(self.resample).name.lower()} by Pillow to {target}")
        if self.cut is not None:
            steps.append(f"centre {self.cut[0]} x {self.cut[1]}")
        return ", ".join(steps) or "size as it is"

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        if self.size is None:
            return frame
        height, width = frame.shape[:2]
        if isinstance(self.size, int):
            longer = int(self.size * max(height, width) / min(height, width))
            height, width = (longer, self.size) if width <= height else (self.size, longer)
        else:
            height, width = self.size
        return np.asarray(Image.fromarray(frame).resize((width, height), self.resample))

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        if self.cut is None:
            return picture
        (top, left), (height, width) = map(self._margin, picture.shape, self.cut), self.cut
        inner = picture[max(top, 0) : top + height, max(left, 0) : left + width]
        if inner.shape[:2] == self.cut:
            return inner
        whole = np.zeros((height, width, 3), np.uint8)
        whole[max(-top, 0) :, max(-left, 0) :][: inner.shape[0], : inner.shape[1]] = inner
        return whole

    def _margin(self, length: int, kept: int) -> int:
        """Return how many pixels lie before the kept part; negative where black ones are added."""
        return (length - kept) // 2 if self.half_pixels == "down" else round((length - kept) / 2)


@dataclass(frozen=True)
class NetworkInput:
    """Resizing and normalising as in the training of a network of the image track."""

    spec: InputSpec

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return float32 [T, C, S, S] of RGB frames uint8 [T, H, W, 3]."""
        from affect.expressions.image_files import to_input  # needs torch, which no other encoder's workers wait for

        if len(frames) == 0:
            return np.zeros((0, self.spec.channels, self.spec.size, self.spec.size), np.float32)
        return np.stack([to_input(frame, self.spec).numpy() for frame in frames])

    def __str__(self) -> str:
        spec = self.spec
        mean, std = (", ".join(f"{x:.4g}" for x in values) for values in (spec.mean, spec.std))
        color = "gray, " if spec.gray else ""
        return f"{color}antialiased bilinear to {spec.size} x {spec.size}, mean ({mean}), std ({std})"
