"""What trainings of language models share: a loss that is a mean over the tokens of answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from affect.engine.metrics import flops_per_token
from affect.engine.stop import StopRequest
from affect.engine.task import Size, Task


class LanguageTask(Task):
    """A task whose batches weigh as their answers have tokens."""

    @cached_property
    def _flops_per_token(self) -> float:
        return flops_per_token(self.model)

    def flops(self, size: Size) -> float:
        """Return about how many operations a step takes."""
        return size.tokens * self._flops_per_token

    def held_out_batches(self, accelerator: Accelerator) -> tuple[Iterable[Any], int]:
        """Return this process's held-out batches, as `share_out` shares them; none where nothing is held out."""
        raise NotImplementedError

    @torch.no_grad()
    def validate(self, model: nn.Module, accelerator: Accelerator, stop: StopRequest) -> dict[str, float] | None:
        """Return the mean loss over all held-out answers' tokens."""
        model.eval()
        batches, own = self.held_out_batches(accelerator)
        total = count = 0.0
        for number, batch in enumerate(batches):
            tokens = self.size(batch).weight if number < own else 0
            loss, _ = self.loss(model, self.to_device(batch, accelerator.device, ()))
            numbers = torch.tensor([0.0, tokens, float(stop.asked)], device=loss.device)
            numbers[0] = loss * tokens
            part, tokens, stopping = accelerator.reduce(numbers, reduction="sum").tolist()
            if stopping:
                return None
            total, count = total + part, count + tokens
        return {"val_loss": total / count} if count else {}


def share_out(samples: Sequence[Any], size: int, accelerator: Accelerator) -> tuple[list[Sequence[Any]], int]:
    """Return this process's batches of at most `size` samples, and how many of them count.

    A batch after those keeps step with processes that have one more.
    """
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    rounds = -(-len(batches) // accelerator.num_processes)
    return mine + batches[:1] * (rounds - len(mine)), len(mine)
