"""MobileFaceNet (arXiv 1804.07573) as a landmark network, of which only the maps are of interest here.

Its head, which turns the last map into 68 landmarks, is left out.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from affect.expressions.models.base import conv_norm, scaled

_conv = partial(conv_norm, act=nn.PReLU)


class FrozenFaceNet(nn.Module):
    """Three maps of a face that never learn: [B, 3, S, S] -> 64 x (S/4)^2, 128 x (S/8)^2, 512 x (S/16)^2 for each face.

    Its weights get no gradients, and it stays in evaluation mode, so that its statistics stay as they were loaded.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        low, middle, high = (scaled(channels, width) for channels in (64, 128, 512))
        self.channels = [low, middle, high]
        self.stem = nn.Sequential(_conv(3, low, 3, stride=2), _conv(low, low, 3, groups=low))
        self.low = nn.Sequential(Bottleneck(low, low, 2 * low, stride=2), *_residuals(low, 2 * low, 4))
        self.middle = nn.Sequential(Bottleneck(low, middle, 4 * low, stride=2), *_residuals(middle, 2 * middle, 6))
        self.high = nn.Sequential(
            Bottleneck(middle, middle, 4 * middle, stride=2),
            *_residuals(middle, 2 * middle, 2),
            _conv(middle, high, 1),
        )
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenFaceNet:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.low(self.stem(images))
        middle = self.middle(low)
        return low, middle, self.high(middle)


class Bottleneck(nn.Module):
    """Widen, convolve each channel, narrow: [B, C, h, w] -> [B, D, h / stride, w / stride]."""

    def __init__(self, channels: int, out: int, wide: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.widen = _conv(channels, wide, 1)
        self.depthwise = _conv(wide, wide, 3, stride, groups=wide)
        self.project = conv_norm(wide, out, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.widen(x)))
        return x + y if self.residual else y


def _residuals(channels: int, wide: int, number: int) -> list[Bottleneck]:
    return [Bottleneck(channels, channels, wide, residual=True) for _ in range(number)]
