"""The course of a run: steps, validation after every epoch, checkpoints; resumable to the bit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from affect.core.config import read_yaml, save_yaml
from affect.engine.checkpoint import TrainState, read_state, save_checkpoint
from affect.engine.curves import draw_epoch
from affect.engine.launch import agreed, check_trackers, start_accelerator, start_trackers
from affect.engine.metrics import Metrics, numbers_of
from affect.engine.older_runs import older_state
from affect.engine.run_folder import choose_folder, locked
from affect.engine.schedule import learning_rate
from affect.engine.step import StepReport
from affect.engine.stop import StopRequest
from affect.engine.task import Task, Weights
from affect.engine.trainer import Trainer, start_trainer, write_state

logger = logging.getLogger(__name__)

OpenTask = Callable[[Accelerator, Path, Path | None], Task]


@dataclass
class Run:
    """Everything that one run's epochs share."""

    task: Task
    config: Any
    trainer: Trainer
    folder: Path
    metrics: Metrics | None
    """On the main process."""
    stop: StopRequest
    per_epoch: int
    total: int
    """Steps of an epoch, and of the run."""


def train(config: Any, cfg_path: str | Path, open_task: OpenTask) -> bool:
    """Train as a configuration says; return False when SIGTERM ended it early, after a checkpoint.

    open_task: (accelerator, run folder, checkpoint to go on from) -> the task. An unfinished run goes on, a
    finished one is left alone. Raises ValueError for settings or data that cannot be used.
    """
    check_trackers(config.run)
    accelerator = start_accelerator(config.run)
    main = accelerator.is_main_process
    if not main:
        logging.getLogger().setLevel(logging.WARNING)
    with ExitStack() as stack:
        # the folder's name holds the time, so one process names it for all
        folder, checkpoint, reason = agreed(lambda: choose_folder(config, Path(cfg_path).stem))
        if reason:
            logger.info("%s: %s; for a new run use another run.output_dir", checkpoint, reason)
            return True
        agreed(lambda: stack.enter_context(locked(folder)))
        task = open_task(accelerator, folder, checkpoint)
        if main:
            save_yaml(config.model_dump(mode="json"), folder / "config.yaml")
            logger.info("run folder: %s", folder)
        return run_task(task, config, folder, checkpoint, accelerator).finished


def run_task(task: Task, config: Any, folder: Path, checkpoint: Path | None, accelerator: Accelerator) -> TrainState:
    """Train to the end of the run, writing metrics, curves and checkpoints into `folder`.

    checkpoint: where to go on from. Returns the last state, not `finished` when SIGTERM came: then a checkpoint of
    that very step was written. Raises FloatingPointError naming the samples of a step whose loss is not finite.
    """
    with ExitStack() as stack:
        run, state = _start(task, config, folder, checkpoint, accelerator, stack)
        if task.validates_first and checkpoint is None:
            state = _entered(run, state, run.trainer.validate(run.stop) or {})
        while not state.reason:
            state, stopping = _steps(run, state)
            scores = None if stopping else run.trainer.validate(run.stop)
            if scores is None:
                return _leave(run, state)
            state = _after_epoch(run, _entered(run, replace(state, epoch=state.epoch + 1), scores))
            weights = run.trainer.weights()
            _keep(run, state, weights)
            _tell_epoch(run, state, _save(run, state, weights))
    return state


def _start(
    task: Task, config: Any, folder: Path, checkpoint: Path | None, accelerator: Accelerator, stack: ExitStack
) -> tuple[Run, TrainState]:
    """Return the run at its beginning, or where a checkpoint left it."""
    per_epoch, total = (count(accelerator.num_processes) for count in (task.steps_per_epoch, task.total_steps))
    state, same = TrainState(epoch=0, step=0, loss=math.nan), True
    if checkpoint:
        state = _start_of(older_state(checkpoint, task.run) or read_state(checkpoint), per_epoch, total)
        task.load(checkpoint)
        there = read_yaml(checkpoint / "config.yaml")
        same = there.get("run", there).get("optimizer", "adamw") == task.run.optimizer
    trainer = start_trainer(task, accelerator, state.step, total)
    if checkpoint:
        trainer.load(checkpoint, state.updates, same)
        logger.info("going on from %s (epoch %d, step %d)", checkpoint, state.epoch, state.step)
    stop = stack.enter_context(StopRequest())
    stack.enter_context(closing(trainer.batches))
    metrics = None
    if accelerator.is_main_process:
        task.begin(folder, checkpoint)
        metrics = stack.enter_context(closing(Metrics(folder, checkpoint, state)))
    start_trackers(accelerator, config, folder)
    stack.callback(lambda: [tracker.finish() for tracker in accelerator.trackers])
    return Run(task, config, trainer, folder, metrics, stop, per_epoch, total), state


def _start_of(state: TrainState, per_epoch: int, total: int) -> TrainState:
    """Return where to go on: within an epoch, or at its start if the checkpoint counted other epochs."""
    begin = state.epoch * per_epoch
    if begin <= state.step <= begin + per_epoch and state.sums.get("steps", 0) == state.step - begin:
        step, sums = state.step, state.sums
    else:
        step, sums = min(begin, total), {}
    reason = "all epochs are done" if step >= total and not sums else ""
    return replace(state, step=step, sums=sums, reason=reason, finished=bool(reason))


def _steps(run: Run, state: TrainState) -> tuple[TrainState, bool]:
    """Run what is left of an epoch's steps; return the state then, and whether it was asked to stop before it."""
    settings, trainer = run.task.run, run.trainer
    end = min((state.epoch + 1) * run.per_epoch, run.total)
    began, first, trainer.waited = time.monotonic(), state.step, 0.0
    while state.step < end:
        rate = _rate(run, state)
        report = trainer.next_step(rate, run.stop)
        state = _counted(state, report, trainer)
        times = ((time.monotonic() - began) / (state.step - first), trainer.waited / (state.step - first))
        _tell_step(run, state, rate, report, times)
        if report.stop:
            return state, True
        if settings.save_every and state.step % settings.save_every == 0:
            _save(run, state, trainer.weights())
    return state, False


def _rate(run: Run, state: TrainState) -> float:
    """Return the rate of the next step."""
    losses = [entry.get("val_loss") for entry in state.history if entry["epoch"]]
    losses = [math.inf if loss is None else loss for loss in losses]
    return learning_rate(state.step, run.per_epoch, run.total, run.task.run, losses)


def _counted(state: TrainState, report: StepReport, trainer: Trainer) -> TrainState:
    """Return the state after one more step."""
    size = report.size
    padding = {"padding": size.padding / size.cells} if size.cells else {}
    more = {"steps": 1, "loss": report.loss, **report.means, **padding}
    sums = {key: state.sums.get(key, 0) + value for key, value in more.items()}
    updates = trainer.average.updates if trainer.average else 0
    return replace(state, step=trainer.step, loss=sums["loss"] / sums["steps"], sums=sums, updates=updates)


def _tell_step(run: Run, state: TrainState, rate: float, report: StepReport, times: tuple[float, float]) -> None:
    """Write a step's line; now and then tell log and trackers. times: of a step, and of its wait for batches."""
    accelerator, sizes = run.trainer.accelerator, report.size
    if run.metrics is None:
        return
    flops = run.task.flops(sizes) / accelerator.num_processes if accelerator.mixed_precision != "no" else 0.0
    numbers = numbers_of(report, state.step, state.epoch + 1, rate, flops, accelerator.device)
    run.metrics.write(numbers)
    place = state.step - 1 - state.epoch * run.per_epoch
    left = min((state.epoch + 1) * run.per_epoch, run.total) - state.step
    if place % run.task.run.log_every and left:
        return
    means = "".join(f"  {name}: {value:.4f}" for name, value in report.means.items())
    logger.info(
        "Train: data epoch: [%d]  [%*d/%d]  eta: %s  lr: %.8f  loss: %.8f%s  time: %.3f  data: %.3f  max mem: %.0f MiB",
        state.epoch + 1,
        len(str(run.per_epoch)),
        place,
        run.per_epoch,
        timedelta(seconds=int(times[0] * left)),
        rate,
        report.loss,
        means,
        *times,
        numbers["memory_mib"],
    )
    told = {key: value for key, value in numbers.items() if key not in ("step", "epoch") and value is not None}
    accelerator.log(told, step=state.step)


def _entered(run: Run, state: TrainState, scores: dict[str, float]) -> TrainState:
    """Return the state with an epoch's entry in its history, told to file and trackers."""
    sums = {key: value for key, value in state.sums.items() if key != "steps"}
    means = {f"train_{key}": value / state.sums["steps"] for key, value in sums.items()}
    entry = {"epoch": state.epoch, "step": state.step}
    if means:
        entry["lr"] = _rate(run, replace(state, step=state.step - 1))
    entry |= {key: value if math.isfinite(value) else None for key, value in (means | scores).items()}
    if run.metrics:
        run.metrics.write(entry)
    told = {key: value for key, value in entry.items() if key not in ("epoch", "step") and value is not None}
    run.trainer.accelerator.log(told, step=state.step)
    return replace(state, sums={}, val_loss=entry.get("val_loss"), history=[*state.history, entry])


def _after_epoch(run: Run, state: TrainState) -> TrainState:
    """Return the state after an epoch with the best one so far, and with why the run ends if it does."""
    watched, patience = run.task.watched, run.task.run.early_stop
    score, sign = state.history[-1].get(watched.score), 1 if watched.higher else -1
    if score is not None and (state.best_score is None or sign * score > sign * state.best_score):
        state = replace(state, best_epoch=state.epoch, best_score=score)
    reason = ""
    if state.step >= run.total:
        reason = "all epochs are done"
    elif patience and watched.score in state.history[-1] and state.epoch - (state.best_epoch or 0) >= patience:
        told = watched.told or watched.score
        reason = f"no better {told} than that of epoch {state.best_epoch or 0} in {patience} epochs"
    return replace(state, reason=reason, finished=bool(reason))


def _keep(run: Run, state: TrainState, weights: Weights) -> None:
    """Write pictures and what the task keeps beside the checkpoints."""
    if run.metrics:
        run.task.end_epoch(run.folder, weights, state.history, state.best_epoch == state.epoch, state.finished)
        if run.task.run.visualize_training:
            draw_epoch(run.folder, state.epoch, run.per_epoch, state.finished)


def _tell_epoch(run: Run, state: TrainState, checkpoint: Path | None) -> None:
    """Write a line about an epoch."""
    padding = state.history[-1].get("train_padding")
    apart = ("epoch", "step", "lr", "train_loss", "train_padding")
    scores = {key: value for key, value in state.history[-1].items() if key not in apart and value is not None}
    told = [f"{key} {value:.4f}" for key, value in scores.items()]
    told += ["the best so far"] if state.best_epoch == state.epoch else []
    told += [f"padding {100 * padding:.1f} %"] if padding is not None else []
    told += [f"checkpoint {checkpoint}"]
    logger.info("epoch %d done, mean loss %.4f%s", state.epoch, state.loss, "".join(f", {text}" for text in told))
    if state.finished and state.step < run.total:
        logger.info("training ends: %s", state.reason)


def _leave(run: Run, state: TrainState) -> TrainState:
    """Write a checkpoint of this very step."""
    state = replace(state, reason="SIGTERM")
    path = _save(run, state, run.trainer.weights())
    logger.info("asked to stop: step %d is done, mean loss %.4f so far, checkpoint %s", state.step, state.loss, path)
    return state


def _save(run: Run, state: TrainState, weights: Weights) -> Path | None:
    """Write a checkpoint; every process takes part, the main one writes and returns the folder."""
    moments, path = run.trainer.state(), None

    def write(folder: Path) -> None:
        run.task.save(folder, weights)
        write_state(folder, moments)
        save_yaml(run.config.model_dump(mode="json"), folder / "config.yaml")

    if run.metrics:
        run.metrics.flush()
        path = save_checkpoint(run.folder, state, bool(state.sums), write, run.task.run.keep_checkpoints)
    run.trainer.accelerator.wait_for_everyone()
    return path
