"""The training loop: iterations over cycled data, an epoch every `iters_per_epoch`, resumable to the bit."""

from __future__ import annotations

import dataclasses
import logging
import math
import resource
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from affect.config import Config
from affect.data.collate import Collator
from affect.data.dataset import ClipDataset, TrainingSamples
from affect.data.sampling import StepBatches
from affect.models.affectgpt import AffectGPT
from affect.schema import Batch
from affect.train.checkpoint import TrainState, load_optimizer, load_weights, read_state, save_checkpoint
from affect.train.schedule import learning_rate
from affect.train.visualizer import TrainingVisualizer

logger = logging.getLogger(__name__)

STATISTICS_CLIPS = 2000
"""Clips that feature means and deviations are taken from, at most."""


def train(
    config: Config,
    model: AffectGPT,
    samples: TrainingSamples,
    folder: Path,
    checkpoint: Path | None,
    accelerator: Accelerator,
) -> TrainState:
    """Train to the end of the run, writing curves and a checkpoint into `folder` every epoch.

    checkpoint: where to go on from. Returns the last state; raises FloatingPointError naming the
    clips of a batch whose loss is not finite.
    """
    run = config.run
    if not model.trainable():
        raise ValueError("nothing is trainable: the layout has no stream, and model.frozen_llm is True; change either")
    optimizer = torch.optim.AdamW(
        _decay_groups(model, run.weight_decay), lr=run.init_lr, betas=(0.9, run.adam_beta2), fused=True
    )
    visualizer = TrainingVisualizer(folder / "training_curves", run.visualize_training)
    state = TrainState(epoch=0, step=0, loss=math.nan, finished=False)
    if checkpoint:
        state = read_state(checkpoint)
        load_weights(checkpoint, model)
        optimizer.load_state_dict(load_optimizer(checkpoint))
        visualizer.load_data(checkpoint / "curves.npz")
        logger.info("going on from %s (epoch %d, step %d)", checkpoint, state.epoch, state.step)
    elif config.model.standardize_features and not config.model.ckpt:  # its statistics came with the weights
        fit_feature_norms(model, samples.datasets, run.seed)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    batches = iter(_loader(config, model, samples, state.step, accelerator))
    for epoch in range(state.epoch, run.max_epoch):
        loss = _train_epoch(config, wrapped, optimizer, batches, epoch, visualizer, accelerator)
        state = TrainState(epoch + 1, (epoch + 1) * run.iters_per_epoch, loss, finished=epoch + 1 == run.max_epoch)
        if accelerator.is_main_process:
            visualizer.end_epoch(state.epoch, last=state.finished)
            visualizer.print_statistics()
            path = save_checkpoint(folder, model, optimizer.state_dict(), visualizer, state, config)
            logger.info("epoch %d done, mean loss %.4f, checkpoint %s", state.epoch, loss, path)
        accelerator.wait_for_everyone()
    return state


def fit_feature_norms(model: AffectGPT, datasets: list[ClipDataset], seed: int) -> None:
    """Give the model the mean and deviation of each stream's rows over (a sample of) the training clips."""
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    if len(places) > STATISTICS_CLIPS:
        chosen = np.random.default_rng(seed).choice(len(places), STATISTICS_CLIPS, replace=False)
        places = [places[i] for i in sorted(chosen)]
    rows: dict[str, list[np.ndarray]] = {}
    for dataset, index in places:
        for stream, array in dataset.features(index).items():
            rows.setdefault(stream, []).append(array)
    for stream, norm in model.norms.items():
        together = np.concatenate(rows[stream]) if stream in rows else np.empty((0, 0))
        if len(together):
            norm.fit(torch.from_numpy(together))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on `device`."""
    moved = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device, non_blocking=True)
        elif isinstance(value, dict):
            moved[field.name] = {stream: tensor.to(device, non_blocking=True) for stream, tensor in value.items()}
    return dataclasses.replace(batch, **moved)


def _decay_groups(model: AffectGPT, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay is for matrices; biases and norms do without it."""
    weights = list(model.trainable().values())
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def _loader(
    config: Config, model: AffectGPT, samples: TrainingSamples, first_step: int, accelerator: Accelerator
) -> DataLoader:
    run = config.run
    sampler = StepBatches(
        size=len(samples),
        batch_size=run.batch_size_train,
        seed=run.seed,
        first=first_step,
        last=run.total_steps,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=run.num_workers,
        collate_fn=Collator(model.tokenizer, config.model.max_length),
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=run.num_workers > 0,
    )


def _train_epoch(
    config: Config,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    epoch: int,
    visualizer: TrainingVisualizer,
    accelerator: Accelerator,
) -> float:
    """Run one epoch's iterations and return their mean loss."""
    run = config.run
    model.train()
    optimizer.zero_grad()
    losses: list[float] = []
    start = time.monotonic()
    for iteration in range(run.iters_per_epoch):
        step = epoch * run.iters_per_epoch + iteration
        asked = time.monotonic()
        batch = to_device(next(batches), accelerator.device)
        data_time = time.monotonic() - asked
        rate = learning_rate(step, run)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # dropout, too, is a function of the step, so that a resumed run draws the same
        torch.manual_seed(int(np.random.SeedSequence((run.seed, step, accelerator.process_index)).generate_state(1)[0]))
        loss = _iteration(config, model, optimizer, batch, iteration, accelerator)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"step {step}: the loss is {loss} on clips {', '.join(batch.names)}; "
                "look at their features or lower run.init_lr; the last checkpoint is kept"
            )
        losses.append(loss)
        visualizer.record(step, rate, loss, epoch + 1)
        last = iteration + 1 == run.iters_per_epoch
        if accelerator.is_main_process and (iteration % run.log_every == 0 or last):
            elapsed = time.monotonic() - start
            left = timedelta(seconds=int(elapsed / (iteration + 1) * (run.iters_per_epoch - iteration - 1)))
            logger.info(
                "Train: data epoch: [%d]  [%*d/%d]  eta: %s  lr: %.8f  loss: %.8f  "
                "time: %.3f  data: %.3f  max mem: %.0f MiB",
                epoch + 1,
                len(str(run.iters_per_epoch)),
                iteration,
                run.iters_per_epoch,
                left,
                rate,
                loss,
                elapsed / (iteration + 1),
                data_time,
                _peak_memory(accelerator.device),
            )
    return float(np.mean(losses))


def _iteration(
    config: Config,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    iteration: int,
    accelerator: Accelerator,
) -> float:
    """Add one batch's gradient, step when enough are gathered, and return the loss over all processes."""
    run = config.run
    steps = run.gradient_accumulation_steps
    moves = (iteration + 1) % steps == 0 or iteration + 1 == run.iters_per_epoch
    if moves:
        loss = model(batch)
        accelerator.backward(loss / steps)
    else:
        with accelerator.no_sync(model):
            loss = model(batch)
            accelerator.backward(loss / steps)
    mean = accelerator.reduce(loss.detach(), reduction="mean").item()
    if moves and math.isfinite(mean):
        if run.max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), run.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return mean


def _peak_memory(device: torch.device) -> float:
    """Return the most memory used so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
