"""Batches in which every class is equally frequent: a pure function of seed and step, like StepBatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from affect.data.sampling import Draw


@dataclass(frozen=True)
class ClassBalancedBatches:
    """Batches for steps `first` to `last` of one process, every class drawn equally often.

    The places of all steps and processes are one row of rounds; a round visits each class once, in an
    order of its own. A class's images come in shuffled order, none again before all have been drawn.
    """

    labels: Sequence[int] | np.ndarray
    """[N] class of each image; classes without any are left out."""
    batch_size: int
    seed: int
    first: int
    last: int
    rank: int = 0
    world: int = 1
    _members: list[np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        object.__setattr__(self, "_members", members)  # the dataclass is frozen

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for step in range(self.first, self.last):
            start = (step * self.world + self.rank) * self.batch_size
            yield [self._draw(position, orders) for position in range(start, start + self.batch_size)]

    def _draw(self, position: int, orders: dict[int, tuple[int, np.ndarray]]) -> Draw:
        """Return what stands at a place; `orders` remembers each class's cycle and the order of its images in it."""
        turn, place = divmod(position, len(self._members))
        label = int(np.random.default_rng((self.seed, turn)).permutation(len(self._members))[place])
        members = self._members[label]
        cycle, offset = divmod(turn, len(members))
        if orders.get(label, (-1,))[0] != cycle:
            orders[label] = cycle, np.random.default_rng((self.seed, label, cycle)).permutation(members)
        return Draw(int(orders[label][1][offset]), cycle)
