"""The loss over a held-out split: no gradient, no dropout, the same questions every time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from affect.data.collate import Collator
from affect.data.config import Config
from affect.data.dataset import TrainingSamples
from affect.data.lengths import text_lengths
from affect.data.sampling import Draw
from affect.engine.step import answer_tokens, to_device
from affect.engine.stop import StopRequest, ignore_sigterm
from affect.models.affectgpt import AffectGPT


@dataclass
class Validation:
    """One process's part of a split."""

    loader: DataLoader
    own: int
    """Batches of the loader that count; one after them only keeps step with the other processes."""

    @torch.no_grad()
    def loss(self, model: torch.nn.Module, accelerator: Accelerator, stop: StopRequest) -> float | None:
        """Return the mean cross-entropy over the split's answer tokens, or None when asked to stop."""
        model.eval()
        total = count = 0.0
        for number, batch in enumerate(self.loader):
            tokens = answer_tokens(batch) if number < self.own else 0
            loss = model(to_device(batch, accelerator.device))
            numbers = torch.tensor([0.0, tokens, float(stop.asked)], device=loss.device)
            numbers[0] = loss * tokens
            part, tokens, stopping = accelerator.reduce(numbers, reduction="sum").tolist()
            if stopping:
                return None
            total, count = total + part, count + tokens
        return total / count


def open_validation(config: Config, model: AffectGPT, samples: TrainingSamples, accelerator: Accelerator) -> Validation:
    """Return this process's part of a split: every stream kept, each clip's question that of cycle 0."""
    kept = [
        dataclasses.replace(dataset, config=dataset.config.model_copy(update={"modality_dropout": 0.0}))
        for dataset in samples.datasets
    ]
    order = np.argsort(text_lengths(samples)(0), kind="stable")
    size = config.run.batch_size_train
    batches = [[Draw(int(clip), 0) for clip in order[start : start + size]] for start in range(0, len(order), size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    rounds = math.ceil(len(batches) / accelerator.num_processes)
    loader = DataLoader(
        dataclasses.replace(samples, datasets=kept),
        batch_sampler=mine + batches[:1] * (rounds - len(mine)),
        num_workers=config.run.num_workers,
        collate_fn=Collator(model.tokenizer, config.model.max_length),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_sigterm,
        persistent_workers=config.run.num_workers > 0,
    )
    return Validation(loader, len(mine))
