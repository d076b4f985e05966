"""One move of the weights: the gradient of some batches, taken anew at the worst point where SAM is on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from affect.engine.stop import StopRequest
from affect.expressions.losses import ExpressionLoss
from affect.expressions.sam import SAM, kept_statistics
from affect.expressions.samples import ImageBatch


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all processes."""

    loss: float
    """Mean over the step's images, before the move."""
    accuracy: float
    """Share of the images whose likeliest class is that of the highest target."""
    own_losses: list[Tensor]
    """Loss of each batch of this process."""
    finite: bool
    """False where loss or gradient was not finite: then nothing moved."""
    stop: bool
    """True when any process was asked to stop."""


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    window: Sequence[ImageBatch],
    loss_of: ExpressionLoss,
    accelerator: Accelerator,
    seed: Sequence[int],
    max_grad_norm: float | None = None,
    stop: StopRequest | None = None,
) -> StepReport:
    """Move the weights once by the mean gradient of a window of batches, which are on the device already.

    seed: whole numbers that name step and process; dropout is a function of them and so the same at
    SAM's two points. The worst point is that of the whole window over all processes. Batch norms see
    each image once. A gradient that float16 cannot hold moves nothing, and the scaler answers it.
    """
    losses, right = _gradient(model, window, loss_of, accelerator, seed)
    scaler = accelerator.scaler
    norm = optimizer.gradient_norm() if isinstance(optimizer, SAM) else _norm(optimizer)
    asked = float(stop is not None and stop.asked)
    numbers = torch.stack([torch.stack(losses).mean(), right, norm.isfinite().float()])
    numbers = torch.cat([numbers, torch.tensor([asked], device=numbers.device)])
    loss, accuracy, measured, stopping = accelerator.reduce(numbers, reduction="mean").tolist()  # the step's one wait
    finite = math.isfinite(loss) and (measured == 1 or scaler is not None)
    if finite:
        if isinstance(optimizer, SAM) and measured == 1:
            with optimizer.perturbed(norm), kept_statistics(model):
                _gradient(model, window, loss_of, accelerator, seed)
        _move(optimizer, scaler, max_grad_norm)
    optimizer.zero_grad()
    return StepReport(loss, accuracy, losses, finite, stopping > 0)


def _gradient(
    model: nn.Module,
    window: Sequence[ImageBatch],
    loss_of: ExpressionLoss,
    accelerator: Accelerator,
    seed: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """Add the gradient of the mean loss; return each batch's loss, and the share of images that are right."""
    losses, shares = [], []
    for number, batch in enumerate(window):
        torch.manual_seed(int(np.random.SeedSequence((*seed, number)).generate_state(1)[0]))
        last = number + 1 == len(window)
        with nullcontext() if last else accelerator.no_sync(model):
            logits = model(batch.images)
            loss = loss_of(logits, batch.targets)
            accelerator.backward(loss / len(window))
        losses.append(loss.detach())
        shares.append((logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)).float().mean())
    return losses, torch.stack(shares).mean()


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _norm(optimizer: torch.optim.Optimizer) -> Tensor:
    return nn.utils.get_total_norm([weight.grad for weight in _weights(optimizer) if weight.grad is not None])


def _move(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, max_grad_norm: float | None) -> None:
    if scaler is not None:
        scaler.unscale_(optimizer)
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(_weights(optimizer), max_grad_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
