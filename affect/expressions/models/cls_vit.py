"""IR-50 and a vision transformer whose blocks may let the class token alone ask (see transformer.Block).

Eight blocks of width 512 read the 7x7 places of the backbone's last map and a class token, whose
normalised end state the classifier reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affect.core.config import ConfigError
from affect.expressions.config import ImageModelConfig
from affect.expressions.models.base import ExpressionModel, run_blocks, scaled
from affect.expressions.models.ir50 import CHANNELS, UNITS, Ir50
from affect.expressions.models.transformer import Block, drop_rates, init_linear

DEPTH = 8
HEADS = 8
STRIDE = 16
"""Pixels of the picture a place of the last map stands for."""


class Ir50Vit(ExpressionModel):
    """Faces of one size, 112 pixels unless told: [B, 3, S, S] -> [B, L]; raises ConfigError for tiny ones."""

    def __init__(self, config: ImageModelConfig, num_classes: int) -> None:
        super().__init__()
        if config.input_size < STRIDE:
            raise ConfigError(f"model.img_size {config.input_size}: expected at least {STRIDE} for ir50_vit")
        self.size = config.input_size
        self.feature_dim = dim = scaled(CHANNELS[-1], config.width)
        self.recompute = config.grad_checkpointing
        units = UNITS if config.stage == "stage4" else (*UNITS[:-1], 1)
        self.image_net = Ir50("iresnet", units, config.width, config.grad_checkpointing)
        places = -(-self.size // STRIDE)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, places**2 + 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, HEADS, config.block, False, config.qk_norm, config.attn_drop, config.proj_drop, rate)
            for rate in drop_rates(config.drop_path or 0.0, config.depth or DEPTH)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for parameter in (self.cls_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        init_linear(self, std=0.02)

    @property
    def cam_layer(self) -> nn.Module:
        """The backbone's last unit."""
        return self.image_net.layers[-1][-1]

    def features(self, images: Tensor) -> Tensor:
        """Return the normalised class token: [B, 3, S, S] -> [B, 512]; raises ValueError for another size."""
        if images.shape[-2:] != (self.size, self.size):
            raise ValueError(f"expected pictures of {self.size}x{self.size} pixels, found {list(images.shape)}")
        patches = self.image_net(images)[-1].flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], dim=1) + self.positions
        x = run_blocks(self.blocks, x, self.recompute and self.training)
        return self.norm(x)[:, 0]
