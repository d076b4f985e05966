"""How large a network is and how much it computes, by the counting rules that published tables use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from affect.expressions.models.transformer import Attention

Rule = Literal["conv_linear", "with_norms"]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers that a network holds, buffers left out."""

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Return how many numbers a network holds, each once, and how many of them learn."""
    parameters = list(model.parameters())
    return ParameterCount(sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))


def count_macs(model: nn.Module, images: Tensor, rule: Rule = "conv_linear") -> int:
    """Return the multiply-accumulates of one forward pass over images [B, C, S, S].

    conv_linear: convolutions and linear layers only, as most tables do; with_norms: also four for each number
    that a batch or layer norm gives, one for each of a PReLU, and 3n - 1 for a softmax over the n places of a
    window of POSTER V2, which is how profilers that look at layers gave the published figures. Neither counts the
    products of queries with keys and of attention with values. Mode and statistics of the network stay as they are.
    """
    total = 0

    def add(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif rule == "conv_linear":
            return
        elif isinstance(layer, Attention):
            batch, places, _ = output.shape
            total += batch * layer.heads * places * (3 * places - 1) if layer.bias is not None else 0
        else:
            total += output.numel() * (4 if isinstance(layer, _NORMS) else 1)

    counted = (nn.Conv2d, nn.Linear, nn.PReLU, Attention, *_NORMS)
    hooks = [layer.register_forward_hook(add) for layer in model.modules() if isinstance(layer, counted)]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
