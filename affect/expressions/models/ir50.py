"""IR-50, the residual network of face recognition, in the two forms that published weights have.

improved: no normalisation between a unit's convolutions, pooled shortcuts where the channels stay
(ArcFace's improved residual units, arXiv 1801.07698, as face.evoLVe trains them).
iresnet: insightface's iresnet50, with that normalisation and a convolved shortcut in each layer's first unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from affect.expressions.models.base import conv_norm, run_blocks, scaled

Form = Literal["improved", "iresnet"]
UNITS = (3, 4, 14, 3)
CHANNELS = (64, 128, 256, 512)


class Ir50(nn.Module):
    """Maps of a picture after every layer, each half the size of the one before: [B, 3, S, S] -> [B, C_i, h_i, h_i]."""

    def __init__(self, form: Form, units: Sequence[int], width: float = 1.0, recompute: bool = False) -> None:
        super().__init__()
        self.channels = [scaled(channels, width) for channels in CHANNELS[: len(units)]]
        first = self.channels[0]
        self.stem = conv_norm(3, first, act=nn.PReLU)
        self.layers = nn.ModuleList()
        for before, channels, number in zip([first, *self.channels], self.channels, units, strict=False):
            pooled = form == "improved" and not self.layers
            shortcut = nn.MaxPool2d(1, 2) if pooled else conv_norm(before, channels, size=1, stride=2)
            head = Unit(form, before, channels, 2, shortcut)
            self.layers.append(nn.Sequential(head, *(Unit(form, channels, channels) for _ in range(number - 1))))
        self.recompute = recompute

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for layer in self.layers:
            x = run_blocks(layer, x, self.recompute and self.training)
            maps.append(x)
        return maps


class Unit(nn.Module):
    """Two convolutions beside a shortcut: [B, C, h, w] -> [B, D, h / stride, w / stride]."""

    def __init__(self, form: Form, channels: int, out: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out) if form == "iresnet" else nn.Identity()
        self.act = nn.PReLU(out)
        self.conv2 = nn.Conv2d(out, out, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm2(self.conv1(self.norm1(x))))
        return self.norm3(self.conv2(y)) + self.shortcut(x)
