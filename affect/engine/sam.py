"""Sharpness-aware minimisation: the gradient is taken twice, and the optimizer moves by that at the worst point nearby.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (ICLR 2021);
adaptive: Kwon et al., "ASAM" (ICML 2021), whose neighbourhood scales with each weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def worst_point(weights: Sequence[Tensor], rho: float, adaptive: bool = False) -> Iterator[None]:
    """Move weights that have gradients to the worst point while entered; after it they are what they were, to the bit.

    rho is the distance of the worst point: the length of the whole step, over all weights. The gradients are
    cleared on entry. Where they are zero nothing moves.
    """
    kept = [weight.detach().clone() for weight in weights]
    norm = nn.utils.get_total_norm([w.grad * w.detach().abs() if adaptive else w.grad for w in weights])
    factor = torch.where(norm > 0, rho / norm, 0.0)
    with torch.no_grad():
        for weight in weights:
            step = weight.grad * weight.abs().square() if adaptive else weight.grad
            weight.add_(step * factor.to(step))
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms use a batch's statistics without adding them to their running ones."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
