"""The training loop: iterations over cycled data, an epoch every `iters_per_epoch`, resumable to the bit."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from affect.core.schema import Batch
from affect.data.collate import Collator
from affect.data.config import Config, RunConfig
from affect.data.dataset import ClipDataset, TrainingSamples
from affect.data.lengths import text_lengths
from affect.data.sampling import StepBatches
from affect.engine.checkpoint import TrainState, load_optimizer, load_weights, read_state, save_checkpoint
from affect.engine.curves import TrainingVisualizer
from affect.engine.launch import start_trackers
from affect.engine.schedule import learning_rate
from affect.engine.sharding import prepare_sharding, whole_optimizer, whole_weights
from affect.engine.step import StepReport, total_tokens, training_step
from affect.engine.stop import StopRequest, ignore_sigterm
from affect.engine.validation import Validation, open_validation
from affect.models.affectgpt import AffectGPT
from affect.models.llm import decoder

logger = logging.getLogger(__name__)

STATISTICS_CLIPS = 2000
"""Clips that feature means and deviations are taken from, at most."""


@dataclass
class Run:
    """Everything that one run's epochs share."""

    config: Config
    model: AffectGPT
    wrapped: torch.nn.Module
    """The model as accelerate wrapped it: the one to call."""
    optimizer: torch.optim.Optimizer
    batches: Iterator[Batch]
    validation: Validation | None
    curves: TrainingVisualizer
    folder: Path
    accelerator: Accelerator
    stop: StopRequest


def train(
    config: Config,
    model: AffectGPT,
    samples: TrainingSamples,
    folder: Path,
    checkpoint: Path | None,
    accelerator: Accelerator,
    held_out: TrainingSamples | None = None,
) -> TrainState:
    """Train to the end of the run, writing curves and a checkpoint into `folder` every epoch.

    checkpoint: where to go on from; held_out: the validation split. Returns the last state, not
    `finished` when SIGTERM came: then a checkpoint of that very step was written. Raises
    FloatingPointError naming the clips of a batch whose loss is not finite.
    """
    settings = config.run
    if not model.trainable():
        raise ValueError("nothing is trainable: the layout has no stream, and model.frozen_llm is True; change either")
    optimizer = build_optimizer(model, settings)
    curves = TrainingVisualizer(folder / "training_curves", settings.visualize_training)
    state = TrainState(epoch=0, step=0, loss=math.nan)
    if checkpoint:
        state = _start_of(read_state(checkpoint), settings.iters_per_epoch)
        load_weights(checkpoint, model)
        curves.load_data(checkpoint / "curves.npz")
        logger.info("going on from %s (epoch %d, step %d)", checkpoint, state.epoch, state.step)
    elif config.model.standardize_features and not config.model.ckpt:  # its statistics came with the weights
        fit_feature_norms(model, samples.datasets, settings.seed)
    wrapped, optimizer = prepare(settings, model, optimizer, accelerator)
    if checkpoint:
        load_optimizer(checkpoint, optimizer, accelerator.scaler)
    batches = iter(training_loader(config, model, samples, state.step, accelerator))
    validation = open_validation(config, model, held_out, accelerator) if held_out else None
    start_trackers(accelerator, config, folder)
    with StopRequest() as stop:
        run = Run(config, model, wrapped, optimizer, batches, validation, curves, folder, accelerator, stop)
        while state.epoch < settings.max_epoch and not state.reason:
            state = _epoch(run, state)
    for tracker in accelerator.trackers:
        tracker.finish()
    return state


def prepare(
    settings: RunConfig, model: AffectGPT, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return model and optimizer ready for the configured processes and speed; the model is also changed in place."""
    if settings.compile:
        decoder(model.llm).compile(dynamic=True)
    if accelerator.is_fsdp2:
        prepare_sharding(model, accelerator.state.fsdp_plugin)
    return accelerator.prepare(model, optimizer)


def _start_of(state: TrainState, iterations: int) -> TrainState:
    """Return where to go on: within an epoch, or at its start if the checkpoint counted other epochs."""
    begin = state.epoch * iterations
    step = state.step if begin <= state.step <= begin + iterations else begin
    return replace(state, step=step, finished=False, reason="")


def _epoch(run: Run, state: TrainState) -> TrainState:
    """Run what is left of an epoch, validate, write curves and checkpoint; return the state then."""
    settings, epoch = run.config.run, state.epoch + 1
    step, stopping = _iterations(run, state.epoch, state.step)
    mean = run.curves.epoch_mean(run.curves.losses, epoch)
    val_loss = None
    if run.validation and not stopping:
        val_loss = run.validation.loss(run.wrapped, run.accelerator, run.stop)
        stopping = val_loss is None
    if stopping:
        state = replace(state, step=step, loss=mean, reason="SIGTERM")
        path = _save(run, state)
        logger.info("asked to stop: step %d is done, mean loss %.4f so far, checkpoint %s", step, mean, path)
        return state
    state = _after_epoch(run, TrainState(epoch, step, mean, val_loss=val_loss), state)
    if run.accelerator.is_main_process:
        if val_loss is not None:
            run.curves.record_validation(epoch, val_loss)
        run.curves.end_epoch(epoch, last=state.finished)
        run.curves.print_statistics()
    path = _save(run, state)
    validated = "" if val_loss is None else f", validation loss {val_loss:.4f} (best: epoch {state.best_epoch})"
    padding = run.curves.epoch_mean(run.curves.paddings, epoch)
    logger.info(
        "epoch %d done, mean loss %.4f%s, padding %.1f %%, checkpoint %s", epoch, mean, validated, 100 * padding, path
    )
    values = {"epoch_loss": mean, "epoch_padding": padding} | ({} if val_loss is None else {"val_loss": val_loss})
    run.accelerator.log(values, step=step)
    if state.finished and epoch < settings.max_epoch:
        logger.info("training ends: %s", state.reason)
    return state


def _after_epoch(run: Run, new: TrainState, before: TrainState) -> TrainState:
    """Return the state after an epoch with the best one so far, and with why the run ends if it does."""
    settings = run.config.run
    best_epoch, best_loss = before.best_epoch, before.best_loss
    if new.val_loss is not None and (best_loss is None or new.val_loss < best_loss):
        best_epoch, best_loss = new.epoch, new.val_loss
    reason = ""
    if new.epoch == settings.max_epoch:
        reason = "all epochs are done"
    elif settings.early_stop and best_epoch is not None and new.epoch - best_epoch >= settings.early_stop:
        reason = f"no better validation loss than that of epoch {best_epoch} in {settings.early_stop} epochs"
    return replace(new, best_epoch=best_epoch, best_loss=best_loss, reason=reason, finished=bool(reason))


def _save(run: Run, state: TrainState) -> Path | None:
    """Write a checkpoint; every process takes part, the main one writes and returns the folder.

    Raises FloatingPointError where a weight is not finite: a loss can be while its gradient is not.
    """
    weights, optimizer = whole_weights(run.model), whole_optimizer(run.optimizer)
    broken = [name for part in weights for name, value in part.items() if not value.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"step {state.step}: weights are not finite ({broken[0]} and {len(broken) - 1} more); lower run.init_lr or "
            "set run.max_grad_norm; the last checkpoint is kept"
        )
    path = None
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        path = save_checkpoint(run.folder, run.model, weights, optimizer, scaler, run.curves, state, run.config)
    run.accelerator.wait_for_everyone()
    return path


def _iterations(run: Run, epoch: int, step: int) -> tuple[int, bool]:
    """Run an epoch's iterations from `step` on; return the next step, and whether it was asked to stop before it."""
    settings, accelerator = run.config.run, run.accelerator
    run.wrapped.train()
    run.optimizer.zero_grad()
    clock = _Clock()
    end, first, stopping = (epoch + 1) * settings.iters_per_epoch, step, False
    while step < end and not stopping:
        window = []
        for _ in range(min(settings.gradient_accumulation_steps, end - step)):
            with clock:
                window.append(next(run.batches))
        totals = total_tokens(window, accelerator)
        for number, batch in enumerate(window):
            rate = learning_rate(step, settings)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            # dropout, too, is a function of the step, so that a resumed run draws the same
            seeds = np.random.SeedSequence((settings.seed, step, accelerator.process_index))
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            report = training_step(
                run.wrapped,
                run.optimizer,
                batch,
                accelerator,
                (totals[number], totals.sum()),
                moves=number + 1 == len(window),
                max_grad_norm=settings.max_grad_norm,
                stop=run.stop,
            )
            if not math.isfinite(report.loss):
                raise _not_finite(step, report, batch)
            run.curves.record(step, rate, report.loss, epoch + 1, report.padding)
            stopping |= report.stop
            step += 1
            if (step - 1) % settings.iters_per_epoch % settings.log_every == 0 or step == end:
                _log(run, epoch, step, rate, report, clock, step - first)
    return step, stopping


class _Clock:
    """Time since its making, and how much of it was spent within `with`."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.waited = 0.0

    def __enter__(self) -> None:
        self._asked = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.waited += time.monotonic() - self._asked


def _not_finite(step: int, report: StepReport, batch: Batch) -> FloatingPointError:
    """Return the error that names the clips behind a loss; every process comes here together."""
    mine = [] if report.own_loss.isfinite() else batch.names
    names = gather_object(mine) or batch.names
    return FloatingPointError(
        f"step {step}: the loss is {report.loss} on clips {', '.join(names)}; "
        "look at their features or lower run.init_lr; the last checkpoint is kept"
    )


def _log(run: Run, epoch: int, step: int, rate: float, report: StepReport, clock: _Clock, count: int) -> None:
    """Write one line about a step and tell the trackers; times are means over this epoch's steps so far."""
    iterations = run.config.run.iters_per_epoch
    iteration = step - 1 - epoch * iterations
    each = (time.monotonic() - clock.start) / count
    logger.info(
        "Train: data epoch: [%d]  [%*d/%d]  eta: %s  lr: %.8f  loss: %.8f  time: %.3f  data: %.3f  max mem: %.0f MiB",
        epoch + 1,
        len(str(iterations)),
        iteration,
        iterations,
        timedelta(seconds=int(each * (iterations - iteration - 1))),
        rate,
        report.loss,
        each,
        clock.waited / count,
        _peak_memory(run.accelerator.device),
    )
    run.accelerator.log({"loss": report.loss, "lr": rate, "padding": report.padding}, step=step)


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


def build_optimizer(model: AffectGPT, settings: RunConfig) -> torch.optim.Optimizer:
    """Return AdamW over what is trainable; weight decay is for matrices, biases and norms do without it."""
    weights = list(model.trainable().values())
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.init_lr, betas=(0.9, settings.adam_beta2), fused=True)


def training_loader(
    config: Config, model: AffectGPT, samples: TrainingSamples, first_step: int, accelerator: Accelerator
) -> DataLoader:
    """Return this process's batches from step `first_step` to the end of the run."""
    settings = config.run
    sampler = StepBatches(
        size=len(samples),
        batch_size=settings.batch_size_train,
        seed=settings.seed,
        first=first_step,
        last=settings.total_steps,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        lengths=text_lengths(samples) if settings.bucket_by_length else None,
    )
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=settings.num_workers,
        collate_fn=Collator(model.tokenizer, config.model.max_length),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_sigterm,
        prefetch_factor=4 if settings.num_workers else None,
    )


def _peak_memory(device: torch.device) -> float:
    """Return the most memory used so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
