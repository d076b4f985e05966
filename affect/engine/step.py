"""One training step: the gradient of a batch's answers, weighted by tokens over processes and accumulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from affect.core.schema import Batch
from affect.data.collate import IGNORED
from affect.engine.stop import StopRequest


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all processes."""

    loss: float
    """Mean cross-entropy of the answers' tokens."""
    own_loss: Tensor
    """That of this process alone."""
    padding: float
    """Share of the batch that is padding."""
    stop: bool
    """True when any process was asked to stop."""


def answer_tokens(batch: Batch) -> int:
    """Return how many tokens of a batch have a loss."""
    return int((batch.labels[:, 1:] != IGNORED).sum())


def total_tokens(batches: Sequence[Batch], accelerator: Accelerator) -> Tensor:
    """Return the answer tokens of each batch, summed over processes: [len(batches)]."""
    counts = torch.tensor([float(answer_tokens(batch)) for batch in batches])
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(accelerator.device, non_blocking=True), reduction="sum")
    return counts


def training_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    accelerator: Accelerator,
    totals: tuple[Tensor, Tensor] | None = None,
    moves: bool = True,
    max_grad_norm: float | None = None,
    stop: StopRequest | None = None,
) -> StepReport:
    """Add the gradient of a batch (in main memory) and, with `moves`, let the optimizer move.

    totals: answer tokens over all processes of this batch, and of all batches since the last move;
    each token weighs the same wherever it was read. A loss that is not finite moves nothing.
    """
    if totals is None:
        totals = (total_tokens([batch], accelerator).sum(),) * 2
    own, cells = answer_tokens(batch), batch.attention_mask.numel()
    padding = cells - int(batch.attention_mask.sum())
    batch = to_device(batch, accelerator.device)
    if moves:
        loss = _backward(model, batch, own / totals[1], accelerator)
    else:
        with accelerator.no_sync(model):
            loss = _backward(model, batch, own / totals[1], accelerator)
    asked = float(stop is not None and stop.asked)
    numbers = torch.tensor([0.0, asked, padding, cells]).to(loss.device, non_blocking=True)
    numbers[0] = loss * (own / totals[0])
    mean, stopping, padding, cells = accelerator.reduce(numbers, reduction="sum").tolist()  # the step's one wait
    if moves and abs(mean) < float("inf"):
        if max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return StepReport(mean, loss, padding / cells, stopping > 0)


def _backward(model: torch.nn.Module, batch: Batch, share: Tensor, accelerator: Accelerator) -> Tensor:
    loss = model(batch)
    # the gradient is averaged over processes afterwards, hence their number
    accelerator.backward(loss * (share * accelerator.num_processes))
    return loss.detach()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on `device`."""
    return batch.each(lambda tensor: tensor.to(device, non_blocking=True))
