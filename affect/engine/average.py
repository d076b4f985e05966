"""A moving average of the weights, which often does better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Average whose decay grows from 2/11 to the configured one, so that the random start is soon forgotten.

    The ramp min(decay, (1 + n) / (10 + n)) after n updates is the one of TensorFlow's ExponentialMovingAverage. Only
    weights that are trained are averaged: the averages of torch and timm copy the network, a frozen one as well.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float, updates: int = 0) -> None:
        """Begin with the weights as they are."""
        self.weights, self.decay, self.updates = list(weights), decay, updates
        self.means = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(self.means, self.weights, None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the average while entered; after it the weights are what they were, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, weight in zip(self.means, self.weights, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
