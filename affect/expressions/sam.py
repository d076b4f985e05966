"""Sharpness-aware minimisation: the optimizer moves by the gradient at the worst point near the weights.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (ICLR 2021);
adaptive: Kwon et al., "ASAM" (ICML 2021), whose neighbourhood scales with each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class SAM(torch.optim.Optimizer):
    """Another optimizer with SAM around it.

    The caller computes the gradient, computes it anew within `with sam.perturbed():`, and calls `step()`;
    or gives `step` a closure that does the former. Groups and state are those of the other optimizer.
    """

    def __init__(self, base: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        """`rho` is the distance of the worst point: the length of the whole step, over all groups."""
        if rho < 0:
            raise ValueError(f"rho: expected a distance from 0 up, found {rho}")
        self.base, self.rho, self.adaptive = base, rho, adaptive
        super().__init__(base.param_groups, base.defaults)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @contextmanager
    def perturbed(self, norm: Tensor | None = None) -> Iterator[None]:
        """Move the weights to the worst point while entered; after it they are what they were, to the bit.

        norm: `gradient_norm()`, if known. The gradients are cleared on entry. Where they are zero nothing moves.
        """
        norm = self.gradient_norm() if norm is None else norm
        weights = self._weights()
        kept = [weight.detach().clone() for weight in weights]
        factor = torch.where(norm > 0, self.rho / norm, 0.0)
        with torch.no_grad():
            for weight in weights:
                step = weight.grad * weight.abs().square() if self.adaptive else weight.grad
                weight.add_(step * factor.to(step))
        self.zero_grad()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, kept, strict=True):
                    weight.copy_(value)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the length of the gradient over all weights (adaptive: of each times its weight's size)."""
        grads = [w.grad * w.abs() if self.adaptive else w.grad for w in self._weights()]
        if not grads:
            raise ValueError("expected gradients before the worst point is looked for, found none; call backward first")
        return torch.stack([grad.norm().to(grads[0].device) for grad in grads]).norm()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Let the other optimizer move; a closure clears and computes the gradient, and is called twice before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
                with self.perturbed():
                    closure()
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the other optimizer's whole state, moments included; between steps SAM has none of its own."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the other optimizer a state."""
        self.base.load_state_dict(state_dict)
        self._share()

    def _weights(self) -> list[nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]


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
