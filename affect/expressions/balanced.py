"""Batches in which every class is equally frequent: a pure function of seed and step, like StepBatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from affect.data.sampling import Draw, StepBatches


@dataclass(frozen=True)
class ClassBalancedBatches(StepBatches):
    """Batches for steps `first` to `last` of one process, every class drawn equally often.

    The places of all steps and processes are one row of rounds; a round visits each class once, in an
    order of its own. A class's images come in shuffled order, none again before all have been drawn.
    """

    labels: np.ndarray = field(kw_only=True)
    """[size] class of each image; classes without any are left out."""

    def __iter__(self) -> Iterator[list[Draw]]:
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for step in range(self.first, self.last):
            start = (step * self.world + self.rank) * self.batch_size
            yield [self._draw(position, members, orders) for position in range(start, start + self.batch_size)]

    def _draw(self, position: int, members: list[np.ndarray], orders: dict[int, tuple[int, np.ndarray]]) -> Draw:
        """Return what stands at a place; `orders` remembers each class's cycle and the order of its images in it."""
        turn, place = divmod(position, len(members))
        label = int(np.random.default_rng((self.seed, turn)).permutation(len(members))[place])
        cycle, offset = divmod(turn, len(members[label]))
        if orders.get(label, (-1,))[0] != cycle:
            orders[label] = cycle, np.random.default_rng((self.seed, label, cycle)).permutation(members[label])
        return Draw(int(orders[label][1][offset]), cycle)
