"""The smallest task that the engine can train: twelve numbers are named one of three classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn

from affect.core.config import RunSettings, Section
from affect.engine.loop import train
from affect.engine.metrics import read_metrics
from affect.engine.task import Size, Task

STEPS = 3
"""Steps of an epoch."""


class ToyConfig(Section):
    """A whole configuration of it."""

    task: Literal["toy"] = "toy"
    run: RunSettings = Field(default_factory=RunSettings)
    uncompared: ClassVar = set()


@dataclass
class Samples:
    inputs: torch.Tensor
    labels: torch.Tensor

    @property
    def names(self) -> list[str]:
        return [f"row{label}" for label in self.labels.tolist()]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batches(count: int, size: int = 8, first: int = 0) -> list[Samples]:
    """Return batches whose first numbers tell the class."""
    found = []
    for number in range(first, first + count):
        rng = torch.Generator().manual_seed(1000 + number)
        labels = torch.randint(3, (size,), generator=rng)
        inputs = torch.randn(size, 12, generator=rng, dtype=torch.double)
        inputs[:, :3] += 2 * nn.functional.one_hot(labels, 3)
        found.append(Samples(inputs, labels))
    return found


@dataclass
class ToyTask(Task):
    run: RunSettings
    model: nn.Module = field(default_factory=network)
    scores: list[float] = field(default_factory=list)
    """Validation losses to state, one an epoch; the loss over a batch of its own when there are none."""
    ended: list[tuple[int, bool, bool]] = field(default_factory=list)
    """Epoch, best, last of each call of end_epoch."""
    validates_first: bool = False
    noun: ClassVar = "rows"

    def steps(self, processes: int) -> tuple[int, int]:
        return STEPS, STEPS * self.run.max_epoch

    def batches(self, first: int, last: int, accelerator: Accelerator):
        every = self.run.gradient_accumulation_steps
        size = self.run.batch_size_train
        return (batches(1, size, number)[0] for number in range(first * every, last * every))

    def to_device(self, batch: Samples, device, seed) -> Samples:
        return Samples(batch.inputs.to(device), batch.labels.to(device))

    def size(self, batch: Samples) -> Size:
        return Size(len(batch.labels), len(batch.labels))

    def loss(self, model: nn.Module, batch: Samples):
        logits = model(batch.inputs)
        right = (logits.detach().argmax(1) == batch.labels).double().mean()
        return nn.functional.cross_entropy(logits, batch.labels), {"acc": right}

    def flops(self, size: Size) -> float:
        return 6.0 * size.samples

    def validate(self, model: nn.Module, accelerator, stop) -> dict[str, float]:
        if self.scores:
            return {"val_loss": self.scores.pop(0)}
        model.eval()
        with torch.no_grad():
            return {"val_loss": self.loss(model, batches(1, 64, 10**6)[0])[0].item()}

    def weights(self):
        return {"model": {name: value.detach().clone() for name, value in self.model.state_dict().items()}}

    def save(self, folder: Path, weights) -> None:
        save_file(weights["model"], folder / "model.safetensors")

    def load(self, checkpoint: Path) -> None:
        self.model.load_state_dict(load_file(checkpoint / "model.safetensors"))

    def end_epoch(self, folder: Path, weights, history: list[dict[str, Any]], best: bool, last: bool) -> None:
        self.ended.append((history[-1]["epoch"], best, last))


def toy_run(folder: Path, **settings: Any) -> ToyConfig:
    """Return settings of two epochs on the CPU."""
    given = {"max_epoch": 2, "batch_size_train": 8, "init_lr": 0.01, "device": "cpu", "log_every": 1, **settings}
    return ToyConfig(run=RunSettings(output_dir=str(folder), visualize_training=False, **given))


def train_toy(config: ToyConfig, task: ToyTask | None = None) -> ToyTask:
    """Train in this process; return the task."""
    task = task or ToyTask(config.run)
    train(config, "toy.yaml", lambda *_: task)
    return task


def toy_losses(folder: Path) -> list[float]:
    """Return the loss of every step."""
    return [step["loss"] for step in read_metrics(folder)[0]]
