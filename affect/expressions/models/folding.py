"""Batch norms that follow a convolution become part of it: the same answers with fewer passes over memory."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from affect.expressions.models.ir50 import Unit


def fold_norms(model: nn.Module) -> None:
    """Fold what can be folded, in place, in a network that is done with training.

    Its logits change by rounding only; its state dict no longer fits the network that was built.
    """
    for module in list(model.modules()):
        for conv, norm in _pairs(module):
            if isinstance(norm_of := getattr(module, norm), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), norm_of))
                setattr(module, norm, nn.Identity())


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of the parts of a module that are a convolution and what reads it alone."""
    if isinstance(module, Unit):
        return [("conv1", "norm2"), ("conv2", "norm3")]
    if isinstance(module, nn.Sequential):
        parts = list(module.named_children())
        return [(first, second) for (first, part), (second, _) in pairwise(parts) if isinstance(part, nn.Conv2d)]
    return []
