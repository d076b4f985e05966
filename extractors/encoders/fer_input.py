"""The way of a picture into a network of the image track, done by decode workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from affect.expressions.samples import InputSpec


@dataclass(frozen=True)
class NetworkInput:
    """Resizing and normalising as in training."""

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
