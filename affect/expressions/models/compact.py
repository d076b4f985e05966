"""The compact network for 48x48 gray faces: 319,927 parameters, 66.9 M multiplications, 1.3 MB on disk.

Convolutions with residual connections down to 6x6 and a classifier 512 -> 256 -> 128 -> classes; the shape
that the checkpoints of small FER2013 systems have. The second residual block excites its channels as
squeeze-and-excitation does (Hu et al., arXiv 1709.01507).
"""

from __future__ import annotations

import torch
from timm.layers import SEModule
from torch import Tensor, nn
from torch.nn import functional as F

from affect.core.config import ConfigError
from affect.expressions.config import ImageModelConfig
from affect.expressions.models.base import ExpressionModel, conv_norm, scaled

SMALLEST = 16
"""Pixels a side that leave 2x2 places after three halvings."""


class Compact(ExpressionModel):
    """Gray faces of any size from 16 pixels: [B, 1, S, S] -> [B, L]; raises ConfigError for smaller ones."""

    def __init__(self, config: ImageModelConfig, num_classes: int) -> None:
        super().__init__()
        if config.input_size < SMALLEST:
            raise ConfigError(f"model.img_size {config.input_size}: expected at least {SMALLEST} for compact")
        low, middle, high = (scaled(channels, config.width) for channels in (32, 64, 128))
        hidden, self.feature_dim = scaled(256, config.width), scaled(128, config.width)
        self.stem = nn.Sequential(conv_norm(1, low), nn.ReLU())
        self.residual1 = Residual(low, low)
        self.residual2 = Residual(low, middle, convolutions=2)
        self.residual3 = Residual(middle, high, excite=True)
        self.neck = nn.Sequential(
            nn.Linear(4 * high, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, self.feature_dim),
            nn.BatchNorm1d(self.feature_dim),
            nn.ReLU(),
        )
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(self.feature_dim, num_classes)

    @property
    def cam_layer(self) -> nn.Module:
        """The last residual block, before its map is halved."""
        return self.residual3

    def features(self, images: Tensor) -> Tensor:
        """Return the vector before the classifier: [B, 1, S, S] -> [B, feature_dim]."""
        x = self.stem(images)
        for residual in (self.residual1, self.residual2, self.residual3):
            x = F.max_pool2d(residual(x), 2)
        return self.neck(F.adaptive_avg_pool2d(x, 2).flatten(1))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits [B, L]; drops features while training."""
        return self.head(self.drop(features))


class Residual(nn.Module):
    """Convolutions beside a shortcut: [B, C, h, w] -> [B, D, h, w]."""

    def __init__(self, channels: int, out: int, convolutions: int = 1, excite: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(channels, out)]
        for _ in range(convolutions - 1):
            layers += [nn.ReLU(), conv_norm(out, out)]
        if excite:
            layers.append(SEModule(out, rd_ratio=1 / 8, rd_divisor=1))
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Identity() if channels == out else conv_norm(channels, out, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))
