"""Which clips a training step sees: a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

POOL_BATCHES = 50
"""Batches whose clips are sorted by length together; more would put the same neighbours together in every cycle."""


@dataclass(frozen=True)
class Draw:
    """One visit to one clip: the clip's index and how often the data had been cycled before."""

    index: int
    cycle: int


def cycle_order(size: int, seed: int, cycle: int) -> np.ndarray:
    """Return the order [size] in which one cycle visits the data."""
    return np.random.default_rng((seed, cycle)).permutation(size)


def bucketed_order(lengths: np.ndarray, seed: int, cycle: int, batch: int) -> np.ndarray:
    """Return an order [N] whose batches hold clips of like length, for clips of `lengths` [N].

    Batches begin at multiples of `batch` counted over all cycles, so a batch may hold the end of one
    cycle and the start of the next: only those two are not of like length.
    """
    size = len(lengths)
    order = cycle_order(size, seed, cycle)
    first = min(size, -cycle * size % batch)
    whole = (size - first) // batch
    stop = first + whole * batch
    pool = POOL_BATCHES * batch
    middle = [
        clips[np.argsort(lengths[clips], kind="stable")]
        for clips in (order[start : min(start + pool, stop)] for start in range(first, stop, pool))
    ]
    batches = np.concatenate([*middle, order[:0]]).reshape(whole, batch)
    shuffled = batches[np.random.default_rng((seed, cycle, 1)).permutation(whole)]
    return np.concatenate([order[:first], shuffled.reshape(-1), order[stop:]])


def coin(seed: int, cycle: int, index: np.ndarray | int) -> np.ndarray:
    """Return a number in [0, 1) for each visit, known without looking at the clip (SplitMix64's mixing)."""
    start = np.random.SeedSequence((seed, cycle)).generate_state(1, np.uint64)
    mixed = start + np.atleast_1d(index).astype(np.uint64)  # whole numbers of arrays wrap around without a warning
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(11)) / 2.0**53).reshape(np.shape(index))


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
    lengths: Callable[[int], np.ndarray] | None = None
    """Cycle -> lengths [size] of what its visits read; given, clips of like length share a batch."""

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        known, order = -1, np.empty(0, int)
        for step in range(self.first, self.last):
            start = (step * self.world + self.rank) * self.batch_size
            batch = []
            for position in range(start, start + self.batch_size):
                cycle, offset = divmod(position, self.size)
                if cycle != known:
                    known, order = cycle, self._order(cycle)
                batch.append(Draw(int(order[offset]), cycle))
            yield batch

    def _order(self, cycle: int) -> np.ndarray:
        if self.lengths is None:
            return cycle_order(self.size, self.seed, cycle)
        # all processes of a step share its lengths, so none waits for another's longer clips
        return bucketed_order(self.lengths(cycle), self.seed, cycle, self.batch_size * self.world)
