"""POSTER V2 (arXiv 2301.12149): maps of a face and of its landmarks meet at three scales, then a small transformer.

picture -> 112x112 -+-> IR-50 ---------------> maps 56, 28, 14 -> halved to 28, 14, 7 = keys and values
                    +-> MobileFaceNet, frozen -> maps 28, 14, 7 = queries
fused maps -> 3 x 49 tokens and a class token -> 2 blocks -> gate -> classifier
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from affect.expressions.config import ImageModelConfig
from affect.expressions.models.base import ExpressionModel, run_blocks, scaled
from affect.expressions.models.ir50 import UNITS, Ir50
from affect.expressions.models.mobilefacenet import FrozenFaceNet
from affect.expressions.models.transformer import Attention, Block, drop_rates, init_linear

INNER_SIZE = 112
"""Pixels a side that both backbones see."""
PLACES = (28, 14, 7)
"""Places a side of the fused maps: one attention window each."""
WINDOW_HEADS = (2, 4, 8)
DIM = 768
HEADS = 8
DEPTH = 2
DROP_PATH = 0.25


class PosterV2(ExpressionModel):
    """Faces of any size: [B, 3, S, S] -> [B, L]."""

    def __init__(self, config: ImageModelConfig, num_classes: int) -> None:
        super().__init__()
        self.feature_dim = dim = scaled(DIM, config.width)
        self.recompute = config.grad_checkpointing
        self.image_net = Ir50("improved", UNITS[:3], config.width, config.grad_checkpointing)
        self.face_net = FrozenFaceNet(config.width)
        low, middle, high = channels = self.image_net.channels
        self.narrow = nn.Conv2d(self.face_net.channels[-1], high, 3, padding=1)
        drops = {"attn_drop": config.attn_drop, "proj_drop": config.proj_drop}
        rates = drop_rates(DROP_PATH if config.drop_path is None else config.drop_path, len(PLACES))
        self.fusions = nn.ModuleList(
            WindowFusion(c, heads, places, drop_path=rate, **drops)
            for c, heads, places, rate in zip(channels, WINDOW_HEADS, PLACES, rates, strict=True)
        )
        self.embed = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(low, dim, 3, 2, 1), nn.Conv2d(dim, dim, 3, 2, 1)),
                nn.Sequential(nn.Conv2d(middle, dim, 3, 2, 1)),
                nn.Sequential(nn.Conv2d(high, dim, 1)),
            ]
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, len(PLACES) * PLACES[-1] ** 2 + 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, HEADS, qkv_bias=True, eps=1e-6, **drops) for _ in range(config.depth or DEPTH)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.gate = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.Sigmoid())
        self.head = nn.Linear(dim, num_classes)
        for parameter in (self.cls_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for part in (self.blocks, self.gate, self.head):
            init_linear(part, std=0.01)

    @property
    def cam_layer(self) -> nn.Module:
        """The fusion at the coarsest scale."""
        return self.fusions[-1]

    def fused_maps(self, images: Tensor) -> list[Tensor]:
        """Return what the image says where the landmarks ask: maps [B, C_i, h_i, h_i] for 28, 14 and 7 places."""
        images = F.interpolate(images, size=INNER_SIZE)  # nearest, as the published weights were trained
        *faces, face = self.face_net(images)
        faces.append(self.narrow(face))
        maps = self.image_net(images)
        return [fusion(image, face) for fusion, image, face in zip(self.fusions, maps, faces, strict=True)]

    def features(self, images: Tensor) -> Tensor:
        """Return the gated class token: [B, 3, S, S] -> [B, 768]."""
        maps = self.fused_maps(images)
        patches = [embed(fused).flatten(2).transpose(1, 2) for embed, fused in zip(self.embed, maps, strict=True)]
        x = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), *patches], dim=1) + self.positions
        x = self.norm(run_blocks(self.blocks, x, self.recompute and self.training))[:, 0]
        return x * self.gate(x)


class WindowFusion(nn.Module):
    """An image map, halved, answers the face map's queries: [B, C, 2h, 2h], [B, C, h, h] -> [B, C, h, h].

    The residual connection begins after the normalisation, and both branches are scaled from almost nothing.
    """

    def __init__(
        self, dim: int, heads: int, places: int, attn_drop: float = 0.0, proj_drop: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.places = places
        self.down = nn.Conv2d(dim, dim, 3, 2, 1)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, True, False, attn_drop, proj_drop, window=places)
        self.scale1 = nn.Parameter(torch.full((dim,), 1e-5))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, drop=proj_drop)
        self.scale2 = nn.Parameter(torch.full((dim,), 1e-5))
        self.drop_path = DropPath(drop_path)

    def forward(self, image: Tensor, face: Tensor) -> Tensor:
        x = self.norm1(self.down(image).flatten(2).transpose(1, 2))
        x = x + self.drop_path(self.scale1 * self.attn(face.flatten(2).transpose(1, 2), x))
        x = x + self.drop_path(self.scale2 * self.mlp(self.norm2(x)))
        return x.transpose(1, 2).unflatten(2, (self.places, self.places))
