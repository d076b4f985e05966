"""What a task gives the engine: batches, loss, validation, and what is kept of it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from affect.core.config import RunSettings
    from affect.engine.stop import StopRequest

Weights = dict[str, dict[str, "Tensor"]]
"""File stem -> name -> tensor, whole and in main memory."""


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
    told: str = ""
    """Its name in sentences."""


class Task(Protocol):
    """What is trained, on what, and what is kept of it.

    A step is a move of the optimizer; it reads run.gradient_accumulation_steps batches in each process. An epoch
    is the steps between two validations.
    """

    run: RunSettings
    model: nn.Module
    """On the device or not; compiled where that is asked for. Weights with requires_grad are trained."""
    watched: Watched
    noun: str
    """What samples are called in errors: clips, images, records."""
    validates_first: bool
    """Whether the scores before the first step are wanted, too."""

    def steps_per_epoch(self, processes: int) -> int:
        """Return how many steps an epoch has."""

    def total_steps(self, processes: int) -> int:
        """Return how many steps the run has; the last epoch may be shorter than the others."""

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Generator[Any]:
        """Return this process's batches for the steps `first` to `last` - 1; closing them ends their workers."""

    def to_device(self, batch: Any, device: Any, seed: tuple[int, ...]) -> Any:
        """Return a batch on a device, mixed where the task mixes; seed: run's, step, process, number of the batch."""

    def size(self, batch: Any) -> Size:
        """Return how much a batch in main memory holds."""

    def names(self, batch: Any) -> list[str]:
        """Return the names of a batch's samples."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of a batch on the device, and other means over it by name."""

    def flops(self, size: Size) -> float:
        """Return about how many operations a step on a batch takes, forward and backward; 0 where that is not known."""

    def validate(self, model: nn.Module, accelerator: Accelerator, stop: StopRequest) -> dict[str, float] | None:
        """Return scores `val_*`, the same on every process, empty where nothing is held out; None when asked to stop.

        `model` is the one to call; it and `self.model` hold the moving average where there is one.
        """

    def weights(self) -> Weights:
        """Return what a checkpoint keeps of the model; every process takes part."""

    def save(self, folder: Path, weights: Weights) -> None:
        """Write what a checkpoint holds beside the engine's own files; the main process does it."""

    def load(self, checkpoint: Path) -> None:
        """Take the weights that `save` wrote (raises ValueError naming the first that do not fit)."""

    def begin(self, folder: Path, checkpoint: Path | None) -> None:
        """Write what the run's folder holds from the start; the main process does it, before the first step."""

    def end_epoch(self, folder: Path, weights: Weights, history: list[dict[str, Any]], best: bool, last: bool) -> None:
        """Write what the run's folder holds beside checkpoints and curves; the main process does it.

        Called before the epoch's checkpoint is written, and again for an epoch that was not kept. history: an entry
        an epoch with epoch, step, lr, train_loss and other means, and the scores (None where one is not a number).
        """
