"""What a task gives the engine: batches, loss, validation, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from affect.engine.stop import StopRequest, ignore_signals

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from affect.core.config import RunSettings

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
    told: str
    """Its name in sentences."""
    higher: bool = False
    """Whether more of it is better."""


class Task:
    """What is trained, on what, and what is kept of it: a task says what has no answer here.

    A step is a move of the optimizer; it reads run.gradient_accumulation_steps batches in each process. An epoch
    is the steps between two validations.
    """

    run: RunSettings
    model: nn.Module
    """On the device or not; compiled where that is asked for. Weights with requires_grad are trained."""
    noun: str
    """What samples are called in errors: clips, images, records."""
    watched = Watched("val_loss", "validation loss")
    validates_first = False
    """Whether the scores before the first step are wanted, too."""

    def steps(self, processes: int) -> tuple[int, int]:
        """Return how many steps an epoch has and the run, whose last epoch may be shorter than the others."""
        raise NotImplementedError

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Generator[Any]:
        """Return this process's batches for the steps `first` to `last` - 1; closing them ends their workers."""
        raise NotImplementedError

    def places(self, first: int, last: int, accelerator: Accelerator) -> dict[str, int]:
        """Return which batches those are, as the samplers of `affect.data.sampling` take it."""
        every = self.run.gradient_accumulation_steps
        return {
            "batch_size": self.run.batch_size_train,
            "seed": self.run.seed,
            "first": first * every,
            "last": last * every,
            "rank": accelerator.process_index,
            "world": accelerator.num_processes,
        }

    def loader(self, samples: Any, sampler: Any, collate: Callable[..., Any], accelerator: Accelerator) -> DataLoader:
        """Return what reads samples in run.num_workers processes."""
        workers = self.run.num_workers
        return DataLoader(
            samples,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
        )

    def to_device(self, batch: Any, device: Any, seed: tuple[int, ...]) -> Any:
        """Return a batch on a device, mixed where the task mixes; seed: run's, step, process, number of the batch."""
        return batch.to(device)

    def size(self, batch: Any) -> Size:
        """Return how much a batch in main memory holds."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of a batch on the device, and other means over it by name."""
        return model(batch), {}

    def flops(self, size: Size) -> float:
        """Return about how many operations a step on a batch takes, forward and backward; 0 where that is not known."""
        return 0.0

    def validate(self, model: nn.Module, accelerator: Accelerator, stop: StopRequest) -> dict[str, float] | None:
        """Return scores `val_*`, the same on every process, empty where nothing is held out; None when asked to stop.

        `model` is the one to call; it and `self.model` hold the moving average where there is one.
        """
        raise NotImplementedError

    def weights(self) -> Weights:
        """Return what a checkpoint keeps of the model; every process takes part."""
        raise NotImplementedError

    def save(self, folder: Path, weights: Weights) -> None:
        """Write what a checkpoint holds beside the engine's own files; the main process does it."""
        raise NotImplementedError

    def load(self, checkpoint: Path) -> None:
        """Take the weights that `save` wrote (raises ValueError naming the first that do not fit)."""
        raise NotImplementedError

    def begin(self, folder: Path, checkpoint: Path | None) -> None:
        """Write what the run's folder holds from the start; the main process does it, before the first step."""

    def end_epoch(self, folder: Path, weights: Weights, history: list[dict[str, Any]], best: bool, last: bool) -> None:
        """Write what the run's folder holds beside checkpoints and curves; the main process does it.

        Called before the epoch's checkpoint is written, and again for an epoch that was not kept. history: an entry
        an epoch with epoch, step, lr, train_loss and other means, and the scores (None where one is not a number).
        """
