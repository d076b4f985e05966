"""Transformer blocks over a class token and patches, whole or with the class token alone asking."""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp, gen_relative_position_index
from torch import Tensor, nn
from torch.nn import functional as F

from affect.expressions.config import Block as BlockKind


class Attention(nn.Module):
    """Multi-head attention of some tokens to all: queries [B, M, D], tokens [B, N, D] -> [B, M, D].

    window: both are the places of a square of so many a side. Queries are then taken as they are, and a learned bias
    for each offset between two places is added (as in Swin).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Identity() if window else nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads)) if window else None
        if window:
            self.register_buffer("offsets", gen_relative_position_index((window, window)), persistent=False)
            nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = self.q_norm(self._by_head(self.q(queries)))
        k, v = (self._by_head(part) for part in self.kv(tokens).chunk(2, dim=-1))
        bias = None if self.bias is None else self.bias[self.offsets].permute(2, 0, 1).to(q.dtype)
        drop = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, self.k_norm(k).to(q.dtype), v.to(q.dtype), bias, drop)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection and normalised first: [B, N, D] -> [B, N or 1, D].

    What happens to the class token c = x[:, :1] and the patches p = x[:, 1:] is its kind:
    baseline          every token asks every token;
    cls_only          only c asks, and only c is left (the next block sees one token);
    cat_before_mlp    only c asks, the MLP sees c and p;
    cat_after_mlp     only c asks and goes through the MLP, p stays as it is;
    add_patches       as cat_after_mlp, and the new c is added to p;
    expand            only c asks, and the answer is added to every token before the MLP.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: BlockKind = "baseline",
        qkv_bias: bool = False,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias, qk_norm, attn_drop, proj_drop)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim, drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm1(x)
        answer = self.drop_path(self.attn(tokens if self.kind == "baseline" else tokens[:, :1], tokens))
        if self.kind in ("baseline", "expand"):
            return self._through_mlp(x + answer)
        c, p = x[:, :1] + answer, x[:, 1:]
        if self.kind == "cat_before_mlp":
            return self._through_mlp(torch.cat([c, p], dim=1))
        c = self._through_mlp(c)
        if self.kind == "cls_only":
            return c
        return torch.cat([c, p + c if self.kind == "add_patches" else p], dim=1)

    def _through_mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


def drop_rates(highest: float, depth: int) -> list[float]:
    """Return rates of stochastic depth that rise evenly from 0 (arXiv 1603.09382)."""
    return torch.linspace(0, highest, depth).tolist()


def init_linear(module: nn.Module, std: float) -> None:
    """Draw the weights of all linear layers from a narrow truncated normal distribution."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
