"""One step: the gradient of some batches, taken anew at the worst point where SAM is on, and a move by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from affect.engine.sam import kept_statistics, worst_point
from affect.engine.stop import StopRequest
from affect.engine.task import Size, Task


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all processes."""

    loss: float
    """Mean over all that was read, before the move."""
    means: dict[str, float]
    """Other means over it, by name."""
    grad_norm: float
    own_losses: list[Tensor]
    """Loss of each batch of this process."""
    size: Size
    stop: bool
    """True when any process was asked to stop."""
    moved: bool = True
    """False where loss or gradient was not finite; where there is a scaler, it answers the latter."""
    seconds: float = 0.0
    """With the wait for batches."""


def training_step(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    window: Sequence[Any],
    accelerator: Accelerator,
    step: int = 0,
    stop: StopRequest | None = None,
    weights: Sequence[Tensor] | None = None,
) -> StepReport:
    """Move the weights once by the mean gradient of a window of batches in main memory.

    Each token (image) weighs the same, whichever process and batch it was read in. Chance is a function of seed,
    step, process and batch, and so the same at SAM's two points and in a run that was resumed. weights: those that
    are trained, where that is known; to look for them in a large model takes milliseconds.
    """
    run = task.run
    shares, own = _shares([task.size(batch) for batch in window], accelerator)
    seeds = [(run.seed, step, accelerator.process_index, number) for number in range(len(window))]
    batches = [task.to_device(batch, accelerator.device, seed) for batch, seed in zip(window, seeds, strict=True)]
    found = _gradient(task, model, batches, shares, seeds, accelerator)
    weights = [weight for weight in weights or model.parameters() if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights])
    asked = stop is not None and stop.asked
    report = _told(found, shares, norm, own, asked, accelerator)
    moved = math.isfinite(report.loss) and math.isfinite(report.grad_norm)
    if moved and run.sam:
        with worst_point(weights, run.sam_rho, run.sam_adaptive), kept_statistics(model):
            _gradient(task, model, batches, shares, seeds, accelerator)
        norm = nn.utils.get_total_norm([weight.grad for weight in weights])
    if moved or (math.isfinite(report.loss) and accelerator.scaler):  # whose scale falls where it was too high
        moved = _move(optimizer, weights, norm, run.max_grad_norm, accelerator.scaler)
    optimizer.zero_grad()
    return replace(report, moved=moved)


def _shares(sizes: Sequence[Size], accelerator: Accelerator) -> tuple[Tensor, Size]:
    """Return what part of the step's mean each batch of this process is [n], and how much it reads in all."""
    own = [float(size.weight) for size in sizes]
    total = torch.tensor(own).sum()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device, non_blocking=True), reduction="sum")
    whole = Size(*(sum(values) for values in zip(*(astuple(size) for size in sizes), strict=True)))
    return torch.stack([weight / total for weight in own]), whole


def _gradient(
    task: Task,
    model: nn.Module,
    batches: Sequence[Any],
    shares: Tensor,
    seeds: Sequence[tuple[int, ...]],
    accelerator: Accelerator,
) -> list[dict[str, Tensor]]:
    """Add the gradient of the step's mean loss; return `loss` and other means of each batch."""
    found = []
    for number, batch in enumerate(batches):
        torch.manual_seed(int(np.random.SeedSequence(seeds[number]).generate_state(1)[0]))
        last = number + 1 == len(batches)
        with nullcontext() if last else accelerator.no_sync(model):
            loss, others = task.loss(model, batch)
            # the gradient is averaged over processes afterwards, hence their number
            accelerator.backward(loss * (shares[number] * accelerator.num_processes))
        found.append({name: value.detach() for name, value in {"loss": loss, **others}.items()})
    return found


def _told(
    found: list[dict[str, Tensor]], shares: Tensor, norm: Tensor, own: Size, asked: bool, accelerator: Accelerator
) -> StepReport:
    """Return loss, other means, length of the gradient, size and the wish to stop over all processes."""
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if accelerator.scaler:
        norm = norm / accelerator.scaler.scale(torch.ones_like(norm))
    parts = [torch.stack(list(each.values())) * share for each, share in zip(found, shares, strict=True)]
    device = parts[0].device
    known = torch.tensor([float(asked), *map(float, astuple(own))]).to(device, non_blocking=True)
    numbers = torch.cat([known, (norm / accelerator.num_processes).reshape(1).to(device), sum(parts)])
    numbers = accelerator.reduce(numbers, reduction="sum").tolist()  # the step's one wait
    stopping, weight, *counts, length = numbers[: -len(found[0])]
    means = dict(zip(found[0], numbers[-len(found[0]) :], strict=True))
    size, own_losses = Size(weight, *map(int, counts)), [each["loss"] for each in found]
    return StepReport(means.pop("loss"), means, length, own_losses, size, stop=stopping > 0)


def _move(
    optimizer: torch.optim.Optimizer,
    weights: Sequence[Tensor],
    norm: Tensor,
    max_grad_norm: float | None,
    scaler: torch.amp.GradScaler | None,
) -> bool:
    """Clip and move; return False where the scaler kept the optimizer from it. norm: of the gradients as they are."""
    if scaler is not None:
        norm = norm / scaler.scale(torch.ones_like(norm))
        scaler.unscale_(optimizer)
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(weights, max_grad_norm, norm)
    if scaler is None:
        optimizer.step()
        return True
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= scale
