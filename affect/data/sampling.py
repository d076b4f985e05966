"""Which clips a training step sees: a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draw:
    """One visit to one clip: the clip's index and how often the data had been cycled before."""

    index: int
    cycle: int


def cycle_order(size: int, seed: int, cycle: int) -> np.ndarray:
    """Return the order [size] in which one cycle visits the data."""
    return np.random.default_rng((seed, cycle)).permutation(size)


def draws(size: int, seed: int, start: int, stop: int) -> list[Draw]:
    """Return the visits `start` to `stop` of data that is cycled for ever, reshuffled in each cycle."""
    orders: dict[int, np.ndarray] = {}
    visits = []
    for position in range(start, stop):
        cycle, offset = divmod(position, size)
        if cycle not in orders:
            orders[cycle] = cycle_order(size, seed, cycle)
        visits.append(Draw(int(orders[cycle][offset]), cycle))
    return visits


@dataclass(frozen=True)
class StepBatches:
    """Batches for steps `first` to `last` of one process: the batch sampler of the training loader."""

    size: int
    batch_size: int
    seed: int
    first: int
    last: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first, self.last):
            start = (step * self.world + self.rank) * self.batch_size
            yield draws(self.size, self.seed, start, start + self.batch_size)
