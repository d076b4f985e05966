"""A task's network in training: made ready for this machine's processes, then moved one step at a time.

trainer = start_trainer(task, start_accelerator(task.run), last=100)
losses = [trainer.next_step(rate).loss for rate in rates]
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import nn

from affect.core.config import RunSettings, read_yaml
from affect.core.reading import read_object, reading
from affect.core.tensors import read_pickled, read_tensors
from affect.engine.average import WeightAverage
from affect.engine.sharding import like, load_whole_optimizer, prepare_sharding, whole, whole_optimizer
from affect.engine.step import StepReport, training_step
from affect.engine.stop import StopRequest
from affect.engine.task import Task, Weights

AVERAGED = "trained.safetensors"
"""Where a moving average is kept, the weights themselves, beside those of the task's own files."""


@dataclass
class Trainer:
    """Everything that moves the weights."""

    task: Task
    wrapped: nn.Module
    """The network as accelerate wrapped it: the one to call."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    batches: Generator[Any]
    """Closing them ends their workers."""
    accelerator: Accelerator
    step: int = 0
    """Moves of the weights so far."""
    waited: float = 0.0
    """Seconds spent waiting for batches so far."""

    @cached_property
    def weights_moved(self) -> list[nn.Parameter]:
        """The weights that training moves, in the model's order."""
        return list(trainable(self.wrapped).values())

    def next_step(self, rate: float, stop: StopRequest | None = None) -> StepReport:
        """Move the weights once at a learning rate.

        Raises FloatingPointError naming the samples of a step whose loss or gradient is not finite.
        """
        began = time.monotonic()
        window = [next(self.batches) for _ in range(self.task.run.gradient_accumulation_steps)]
        self.waited += time.monotonic() - began
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        report = training_step(
            self.task, self.wrapped, self.optimizer, window, self.accelerator, self.step, stop, self.weights_moved
        )
        if not math.isfinite(report.loss) or not (report.moved or self.accelerator.scaler):
            raise self._not_finite(report, window)
        if self.average and report.moved:
            self.average.update()
        self.step += 1
        return replace(report, seconds=time.monotonic() - began)

    def _not_finite(self, report: StepReport, window: list[Any]) -> FloatingPointError:
        """Return the error that names the samples behind a loss; every process comes here together."""
        task = self.task
        broken = [batch for batch, loss in zip(window, report.own_losses, strict=True) if not loss.isfinite()]
        names = gather_object([name for batch in broken for name in batch.names])
        names = names or gather_object([name for batch in window for name in batch.names])
        found = f"loss is {report.loss}" if not math.isfinite(report.loss) else "gradient is not finite"
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return FloatingPointError(
            f"step {self.step}: the {found} on {task.noun} {', '.join(names[:10])}{more}; look at them, lower "
            "run.init_lr or set run.max_grad_norm; the last checkpoint is kept"
        )

    def validate(self, stop: StopRequest) -> dict[str, float] | None:
        """Return the scores of the network to keep, None when asked to stop."""
        with self._kept():
            scores = self.task.validate(self.wrapped, self.accelerator, stop)
        self.wrapped.train()
        return scores

    def weights(self) -> Weights:
        """Return the weights to keep, whole; every process takes part.

        Raises FloatingPointError where one is not finite: a loss can be while its gradient is not.
        """
        with self._kept():
            weights = self.task.weights()
            if self.average:  # on the CPU they are the network's own memory, which is about to change
                weights = {stem: {n: value.clone() for n, value in part.items()} for stem, part in weights.items()}
        broken = [n for part in weights.values() for n, value in part.items() if not value.isfinite().all()]
        if broken:
            raise FloatingPointError(
                f"step {self.step}: weights are not finite ({broken[0]} and {len(broken) - 1} more); lower run.init_lr "
                "or set run.max_grad_norm; the last checkpoint is kept"
            )
        return weights

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on beside the weights to keep, whole; every process takes part."""
        trained = {name: whole(weight) for name, weight in trainable(self.task.model).items()} if self.average else {}
        scaler = self.accelerator.scaler
        return {
            "optimizer": whole_optimizer(self.optimizer),
            "trained": trained,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load(self, checkpoint: Path, updates: int) -> None:
        """Go on from a state with this run's own settings (raises ValueError where it cannot be read or does not fit).

        The model has the weights that the checkpoint keeps already. Moments of another kind of optimizer are left out.
        """
        there, expected = read_yaml(checkpoint / "config.yaml"), "the state of this run"
        path = checkpoint / "optimizer.pt"
        with reading(path, expected):
            if there.get("run", there).get("optimizer", "adamw") == self.task.run.optimizer:
                load_whole_optimizer(self.optimizer, read_pickled(path, expected)["state"])
        if self.average:
            self.average.updates = updates
        path = checkpoint / AVERAGED
        if path.is_file():
            with reading(path, expected), torch.no_grad():
                trained = read_tensors(path, expected)
                for name, weight in trainable(self.task.model).items():
                    weight.copy_(like(weight, trained[name]))
        path = checkpoint / "scaler.json"
        if self.accelerator.scaler and path.is_file():  # a run may have begun without float16
            with reading(path, expected):
                self.accelerator.scaler.load_state_dict(read_object(path))

    def _kept(self) -> AbstractContextManager[None]:
        return self.average.in_place() if self.average else nullcontext()


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write what `Trainer.state` returned, for `Trainer.load`."""
    torch.save(state["optimizer"], folder / "optimizer.pt")
    if state["trained"]:
        save_file(state["trained"], folder / AVERAGED)
    if state["scaler"]:
        (folder / "scaler.json").write_text(json.dumps(state["scaler"]))


def start_trainer(task: Task, accelerator: Accelerator, first: int = 0, last: int | None = None) -> Trainer:
    """Return a trainer whose batches begin at step `first` and end before `last` (the run's end).

    Raises ValueError where nothing is trainable.
    """
    weights = trainable(task.model)
    if not weights:
        raise ValueError("nothing is trainable: every weight is frozen; change the layout or the frozen_* settings")
    optimizer = build_optimizer(list(weights.values()), task.run)
    if accelerator.is_fsdp2:
        prepare_sharding(task.model, accelerator.state.fsdp_plugin)
    wrapped, prepared = accelerator.prepare(task.model, optimizer)
    wrapped.train()
    average = WeightAverage(list(trainable(task.model).values()), task.run.ema) if task.run.ema else None
    last = task.steps(accelerator.num_processes)[1] if last is None else last
    batches = task.batches(first, last, accelerator)
    return Trainer(task, wrapped, prepared.optimizer, average, batches, accelerator, first)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter for everything that training moves."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(weights: list[nn.Parameter], run: RunSettings) -> torch.optim.Optimizer:
    """Return the configured optimizer; weight decay is for matrices and kernels alone."""
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": run.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if run.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=run.init_lr, momentum=run.momentum)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimizer]
    return kind(groups, lr=run.init_lr, betas=(run.adam_beta1, run.adam_beta2), eps=run.adam_eps, fused=True)
