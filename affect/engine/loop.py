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

from affect.core.config import save_yaml
from affect.engine.checkpoint import ALL_DONE, TrainState, full_disk_told, read_state, save_checkpoint
from affect.engine.curves import draw_epoch
from affect.engine.launch import agreed, check_trackers, start_accelerator, start_trackers
from affect.engine.metrics import Metrics, numbers_of
from affect.engine.run_folder import choose_folder, locked
from affect.engine.schedule import learning_rate
from affect.engine.step import StepReport
from affect.engine.stop import StopRequest
from affect.engine.task import Task, Weights
from affect.engine.trainer import Trainer, start_trainer, write_state

logger = logging.getLogger(__name__)

OpenTask = Callable[[Accelerator, Path, Path | None], Task]


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
        if checkpoint and reason:
            logger.info("%s: %s; for a new run use another run.output_dir", checkpoint, reason)
            return True
        agreed(lambda: stack.enter_context(locked(folder)))
        task = open_task(accelerator, folder, checkpoint)
        if main:
            save_yaml(config.model_dump(mode="json"), folder / "config.yaml")
            logger.info("%s%srun folder: %s", reason, reason and "; ", folder)
        return run_task(task, config, folder, checkpoint, accelerator).finished


def run_task(task: Task, config: Any, folder: Path, checkpoint: Path | None, accelerator: Accelerator) -> TrainState:
    """Train to the end of the run, writing metrics, curves and checkpoints into `folder`.

    checkpoint: where to go on from. Returns the last state, not `finished` when SIGTERM came: then a checkpoint of
    that very step was written. Raises FloatingPointError naming the samples of a step whose loss is not finite.
    """
    with full_disk_told(folder), ExitStack() as stack:
        run = start(task, config, folder, checkpoint, accelerator, stack)
        if task.validates_first and checkpoint is None:
            run.enter(run.trainer.validate(run.stop) or {})
        while not run.state.reason:
            stopping = run.steps()
            scores = None if stopping else run.trainer.validate(run.stop)
            if scores is None:
                run.leave()
            else:
                run.end_epoch(scores)
    return run.state


def start(
    task: Task, config: Any, folder: Path, checkpoint: Path | None, accelerator: Accelerator, stack: ExitStack
) -> Run:
    """Return the run at its beginning, or where a checkpoint left it."""
    per_epoch, total = task.steps(accelerator.num_processes)
    state = TrainState(epoch=0, step=0, loss=math.nan)
    if checkpoint:
        if (checkpoint / "curves.npz").is_file():
            raise ValueError(
                f"{checkpoint}: written by a version whose steps were single batches, and does not go on; begin "
                "anew in another run.output_dir, with model.ckpt for its weights"
            )
        state = _where(read_state(checkpoint), per_epoch, total)
        task.load(checkpoint)
    trainer = start_trainer(task, accelerator, state.step, total)
    if checkpoint:
        trainer.load(checkpoint, state.updates)
        logger.info("going on from %s (epoch %d, step %d)", checkpoint, state.epoch, state.step)
    stop = stack.enter_context(StopRequest())
    stack.enter_context(closing(trainer.batches))
    metrics = None
    if accelerator.is_main_process:
        task.begin(folder, checkpoint)
        metrics = stack.enter_context(closing(Metrics(folder, checkpoint, state)))
    start_trackers(accelerator, config, folder)
    stack.callback(lambda: [tracker.finish() for tracker in accelerator.trackers])
    return Run(task, config, trainer, folder, metrics, stop, per_epoch, total, state)


def _where(state: TrainState, per_epoch: int, total: int) -> TrainState:
    """Return where to go on: within an epoch, or at its start if the checkpoint counted other epochs."""
    begin = state.epoch * per_epoch
    if begin <= state.step <= begin + per_epoch and state.sums.get("steps", 0) == state.step - begin:
        step, sums = state.step, state.sums
    else:
        step, sums = min(begin, total), {}
    reason = ALL_DONE if step >= total and not sums else ""
    return replace(state, step=step, sums=sums, reason=reason, finished=bool(reason))


@dataclass
class Run:
    """What a run's epochs share, and where it is."""

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
    state: TrainState

    @property
    def end(self) -> int:
        """Step at which the epoch at hand ends."""
        return min((self.state.epoch + 1) * self.per_epoch, self.total)

    def steps(self) -> bool:
        """Run what is left of an epoch's steps; return whether it was asked to stop before the epoch's end."""
        trainer, save_every = self.trainer, self.task.run.save_every
        began, first, trainer.waited = time.monotonic(), self.state.step, 0.0
        while self.state.step < self.end:
            rate = self._rate(self.state.step)
            report = trainer.next_step(rate, self.stop)
            self._count(report)
            done = self.state.step - first
            self._tell_step(rate, report, (time.monotonic() - began) / done, trainer.waited / done)
            if report.stop:
                return True
            if save_every and self.state.step % save_every == 0:
                self.save()
        return False

    def _rate(self, step: int) -> float:
        losses = [entry.get("val_loss") for entry in self.state.history if entry["epoch"]]
        losses = [math.inf if loss is None else loss for loss in losses]
        return learning_rate(step, self.per_epoch, self.total, self.task.run, losses)

    def _count(self, report: StepReport) -> None:
        """Add a step to the state."""
        sums, size, average = self.state.sums, report.size, self.trainer.average
        padding = {"padding": size.padding / size.cells} if size.cells else {}
        more = {"steps": 1, "loss": report.loss, **report.means, **padding}
        sums = {key: sums.get(key, 0) + value for key, value in more.items()}
        updates = average.updates if average else 0
        loss = sums["loss"] / sums["steps"]
        self.state = replace(self.state, step=self.trainer.step, loss=loss, sums=sums, updates=updates)

    def _tell_step(self, rate: float, report: StepReport, seconds: float, waited: float) -> None:
        """Write a step's line; now and then tell log and trackers. seconds, waited: of a step, on average."""
        accelerator, state = self.trainer.accelerator, self.state
        if self.metrics is None:
            return
        flops = self.task.flops(report.size) / accelerator.num_processes if accelerator.mixed_precision != "no" else 0.0
        numbers = numbers_of(report, state.step, state.epoch + 1, rate, flops, accelerator.device)
        self.metrics.write(numbers)
        place, left = state.step - 1 - state.epoch * self.per_epoch, self.end - state.step
        if place % self.task.run.log_every and left:
            return
        logger.info(
            "Train: data epoch: [%d]  [%*d/%d]  eta: %s  lr: %.8f  loss: %.8f%s  time: %.3f  data: %.3f  "
            "max mem: %.0f MiB",
            state.epoch + 1,
            len(str(self.per_epoch)),
            place,
            self.per_epoch,
            timedelta(seconds=int(seconds * left)),
            rate,
            report.loss,
            "".join(f"  {name}: {value:.4f}" for name, value in report.means.items()),
            seconds,
            waited,
            numbers["memory_mib"],
        )
        self._track(numbers)

    def _track(self, numbers: dict[str, Any]) -> None:
        told = {key: value for key, value in numbers.items() if key not in ("step", "epoch") and value is not None}
        self.trainer.accelerator.log(told, step=numbers["step"])

    def enter(self, scores: dict[str, float]) -> None:
        """Add an entry to the history, told to file and trackers: the means since the last one, and scores."""
        sums = dict(self.state.sums)
        entry: dict[str, Any] = {"epoch": self.state.epoch, "step": self.state.step}
        if steps := sums.pop("steps", 0):
            entry["lr"] = self._rate(self.state.step - 1)
        means = {f"train_{key}": value / steps for key, value in sums.items()}
        entry |= {key: value if math.isfinite(value) else None for key, value in (means | scores).items()}
        if self.metrics:
            self.metrics.write(entry)
        self._track(entry)
        history = [*self.state.history, entry]
        self.state = replace(self.state, sums={}, val_loss=entry.get("val_loss"), history=history)

    def end_epoch(self, scores: dict[str, float]) -> None:
        """Judge an epoch by its scores, keep what it brought, and say so."""
        self.state = replace(self.state, epoch=self.state.epoch + 1)
        self.enter(scores)
        self.state = judged(self.state, self.task, self.state.step >= self.total)
        weights, state = self.trainer.weights(), self.state
        if self.metrics:
            self.task.end_epoch(self.folder, weights, state.history, state.best_epoch == state.epoch, state.finished)
            if self.task.run.visualize_training:
                draw_epoch(self.folder, state.epoch, self.per_epoch, state.finished)
        checkpoint = self.save(weights)
        apart = ("epoch", "step", "lr", "train_loss", "train_padding")
        found = state.history[-1]
        told = [f"{key} {value:.4f}" for key, value in found.items() if key not in apart and value is not None]
        told += ["the best so far"] if state.best_epoch == state.epoch else []
        told += [f"padding {100 * found['train_padding']:.1f} %"] if "train_padding" in found else []
        told += [f"checkpoint {checkpoint}"]
        logger.info("epoch %d done, mean loss %.4f, %s", state.epoch, state.loss, ", ".join(told))
        if state.finished and state.step < self.total:
            logger.info("training ends: %s", state.reason)

    def leave(self) -> None:
        """Write a checkpoint of this very step (raises KeyboardInterrupt where Ctrl-C asked for it)."""
        self.state = state = replace(self.state, reason="asked to stop")
        path = self.save()
        told = "asked to stop: step %d is done, mean loss %.4f so far, checkpoint %s; the same command goes on from it"
        logger.info(told, state.step, state.loss, path)
        if self.stop.interrupted:
            raise KeyboardInterrupt

    def save(self, weights: Weights | None = None) -> Path | None:
        """Write a checkpoint; every process takes part, the main one writes and returns the folder."""
        weights = weights or self.trainer.weights()
        moments, path = self.trainer.state(), None

        def write(folder: Path) -> None:
            self.task.save(folder, weights)
            write_state(folder, moments)
            save_yaml(self.config.model_dump(mode="json"), folder / "config.yaml")

        if self.metrics:
            self.metrics.flush()
            path = save_checkpoint(
                self.folder, self.state, bool(self.state.sums), write, self.task.run.keep_checkpoints
            )
        self.trainer.accelerator.wait_for_everyone()
        return path


def judged(state: TrainState, task: Task, over: bool) -> TrainState:
    """Return the state after an epoch with the best one so far, and with why the run ends if it does."""
    watched, patience, found = task.watched, task.run.early_stop, state.history[-1]
    score, sign = found.get(watched.score), 1 if watched.higher else -1
    if score is not None and (state.best_score is None or sign * score > sign * state.best_score):
        state = replace(state, best_epoch=state.epoch, best_score=score)
    best, reason = state.best_epoch or 0, ALL_DONE if over else ""
    if not over and patience and watched.score in found and state.epoch - best >= patience:
        reason = f"no better {watched.told} than that of epoch {best} in {patience} epochs"
    return replace(state, reason=reason, finished=bool(reason))
