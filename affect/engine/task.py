"""What a task gives the engine: batches, loss, validation, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from affect.engine.stop import StopRequest


@dataclass(frozen=True)
class Size:
    """How much one process's batch holds, known in main memory before it is sent to a device."""

    weight: float
    """What its loss is a mean over: answer tokens, or images."""
    samples: int
    tokens: int = 0
    cells: int = 0
    """Places of the padded batch, `padding` of them empty."""
    padding: int = 0


@dataclass(frozen=True)
class Watched:
    """The score by which an epoch is the best one."""

    score: str
    higher: bool = False
    """Whether more of it is better."""


class Task(Protocol):
    """What is trained, on what, and what is kept of it."""

    name: str
    run: Any
    """Settings that all tasks share (`affect.core.config.RunSettings`)."""
    settings: dict[str, Any]
    """The resolved configuration as plain values, section -> key -> value: written down, and compared on resume."""
    model: nn.Module
    watched: Watched

    def steps_per_epoch(self, processes: int) -> int:
        """Return how many moves of the optimizer an epoch has."""

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Iterator[Any]:
        """Return this process's batches, accumulation of them for each of the steps `first` to `last` - 1."""

    def to_device(self, batch: Any, device: Any, seed: tuple[int, ...]) -> Any:
        """Return a batch on a device, changed as training wants it: a pure function of seed, step, process, number."""

    def size(self, batch: Any) -> Size:
        """Return how much a batch in main memory holds."""

    def names(self, batch: Any) -> list[str]:
        """Return the names of a batch's samples."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of a batch, and other means over it by name."""

    def validate(self, model: nn.Module, accelerator: Accelerator, stop: StopRequest) -> dict[str, float] | None:
        """Return scores `val_*` of the network to keep, empty where nothing is held out; None when asked to stop."""

    def weights(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Return file stem -> weights, whole and in main memory; every process takes part."""

    def save(self, folder: Path, weights: dict[str, dict[str, Tensor]]) -> None:
        """Write what a checkpoint holds beside the engine's own files; the main process does it."""

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint (raises ValueError naming the first that do not fit)."""

    def end_epoch(self, folder: Path, checkpoint: Path, scores: dict[str, float], best: bool, last: bool) -> None:
        """Write what the run's folder holds beside checkpoints and curves; the main process does it."""
