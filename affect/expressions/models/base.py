"""What every network that names expressions has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ExpressionModel(nn.Module):
    """A network whose classifier `head` reads one vector a face."""

    feature_dim: int
    """Width of that vector."""
    head: nn.Linear
    """The last layer, the only one whose shape depends on the number of classes."""

    @property
    def cam_layer(self) -> nn.Module:
        """The last layer whose output has places: what Grad-CAM looks at."""
        raise NotImplementedError

    def as_map(self, output: Tensor) -> Tensor:
        """Return the output of that layer as a map [B, C, h, w]."""
        return output

    def features(self, images: Tensor) -> Tensor:
        """Return the vector before the classifier: [B, C, S, S] -> [B, feature_dim]."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Return logits [B, L] of those vectors."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: [B, C, S, S] -> [B, L]."""
        return self.classify(self.features(images))


def scaled(channels: int, width: float) -> int:
    """Return a share of the channels: a multiple of 16, which heads divide, and at least that.

    With 8 channels, a strided 1x1 convolution in channels_last kills the process on CPUs (oneDNN, torch 2.15).
    """
    return max(16, round(channels * width / 16) * 16)


def conv_norm(
    channels: int, out: int, size: int = 3, stride: int = 1, groups: int = 1, act: type[nn.PReLU] | None = None
) -> nn.Sequential:
    """Return a convolution without a bias that keeps the places but for its stride, batch norm and activation."""
    convolution = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), *([act(out)] if act else []))


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, recompute: bool) -> Tensor:
    """Return x after all blocks; recompute: keep only what is between them and compute the rest anew going back."""
    for block in blocks:
        x = _checkpointed(block, x) if recompute and torch.is_grad_enabled() else block(x)
    return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(block)))


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let the second forward pass of a batch not count in the running statistics again."""
    kept = [
        (norm, name, value)
        for norm in block.modules()
        if isinstance(norm, nn.BatchNorm2d)
        for name, value in norm.named_buffers()
    ]
    for norm, name, value in kept:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in kept:
            setattr(norm, name, value)
