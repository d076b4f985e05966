"""Training a network that names expressions: python train.py --cfg-path train_configs/fer_*.yaml

{run folder}/
    best.safetensors    the network of the epoch with the best validation accuracy (macro F1 with multi-label)
    last.safetensors    that of the last epoch; both hold the moving average of the weights where run.ema is on
    history.json        one entry an epoch: rate, training loss and accuracy, validation scores
    confusion.png       of the best epoch; accuracy.png and training_curves/: over all epochs
    failures.csv        images that could not be used, and why
    resume.pt           what the run goes on from, to the bit
    config.yaml         the resolved configuration
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from affect.core.failures import write_failures
from affect.core.plots import draw_confusion
from affect.engine.launch import check_trackers, start_accelerator, start_trackers
from affect.engine.stop import StopRequest
from affect.expressions.config import FerConfig, load_fer_config
from affect.expressions.curves import HD_EVERY, TrainingVisualizer
from affect.expressions.evaluation import Evaluation, evaluate, joined
from affect.expressions.history import Entry, best_entry, draw_scores, end_reason, history_entry, watched, write_history
from affect.expressions.image_set import ImageSet, check_images, open_images
from affect.expressions.models import check_settings
from affect.expressions.network_file import ModelCard, save_model
from affect.expressions.presets import data_spec
from affect.expressions.resume import RunState, load_state, run_folder, save_fer_config, save_state
from affect.expressions.schedule import learning_rate
from affect.expressions.scores import ExpressionScores, expression_scores
from affect.expressions.step import StepReport
from affect.expressions.trainer import Trainer, build_trainer, steps_per_epoch

logger = logging.getLogger(__name__)

LONG_EPOCH = 100
"""Steps of an epoch from which on curves are drawn after each; drawing takes as long as a short one."""


@dataclass
class Run:
    """Everything that one run's epochs share."""

    trainer: Trainer
    val_set: ImageSet
    folder: Path
    per_epoch: int
    """Steps of an epoch."""
    curves: TrainingVisualizer
    stop: StopRequest
    history: list[Entry] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    """Training accuracy of each step of the epoch at hand."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Split -> images that cannot be read."""

    @property
    def score(self) -> str:
        """What makes an epoch the best one."""
        return watched(self.trainer.config.multi_label)


def train_expressions(cfg_path: str | Path, options: Sequence[str] = ()) -> bool:
    """Train as a YAML file says; return False when SIGTERM ended it early, after the state was saved.

    An unfinished run goes on, a finished one is left alone. Raises ValueError for settings or data that cannot be used,
    FloatingPointError naming the images of a step whose loss or gradient is not finite.
    """
    config = load_fer_config(cfg_path, options)
    check_trackers(config.run)
    check_settings(config.model)  # before all images are read
    accelerator = start_accelerator(config.run)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    # the folder's name holds the time, so one process names it for all
    folder, resume, reason = broadcast_object_list(list(run_folder(config, cfg_path)))
    if reason:
        logger.info("%s: %s; for a new run use another run.output_dir", folder, reason)
        return True
    state = load_state(resume) if resume else None
    sets, left_out = open_sets(config, folder, accelerator, state)
    if accelerator.is_main_process:
        save_fer_config(config, folder / "config.yaml")
        logger.info("run folder: %s", folder)
    with StopRequest() as stop:
        run = _start(config, sets, folder, accelerator, state, stop)
        run.left_out = left_out
        if resume:
            logger.info("going on from %s: epoch %d, step %d are done", resume, len(run.history), run.trainer.step)
            _bring_best(run, resume)
        start_trackers(accelerator, config, folder)
        with closing(run.trainer.batches):
            done = _epochs(run)
    for tracker in accelerator.trackers:
        tracker.finish()
    return done


def open_sets(
    config: FerConfig,
    folder: Path,
    accelerator: Accelerator,
    state: RunState | None = None,
) -> tuple[dict[str, ImageSet], dict[str, list[str]]]:
    """Return the train and val images that can be read, and the names of the others; log how many of each class.

    The main process reads every image once (images.check_images) and writes failures.csv. A run that
    goes on leaves out what it left out before, so that its order is the same.
    """
    spec = data_spec(config.model, config.images)
    sets = open_images(config.images, spec, ("train", "val"), seed=config.run.seed)
    for split, why in (("train", "train on"), ("val", "validate on; set images.val_split above 0")):
        if split not in sets:
            raise ValueError(f"{config.images.data_root}: expected images to {why}, found none")
    if state and state.config.images == config.images:
        left_out = state.left_out
    else:
        found = [failure for image_set in sets.values() for failure in image_set.failures]
        left_out = {}
        if accelerator.is_main_process:
            for split, image_set in sets.items():
                failures = check_images(image_set, config.run.num_workers) if config.images.check_images else []
                left_out[split] = [failure.name for failure in failures]
                found += failures
            write_failures(folder / "failures.csv", list(dict.fromkeys(found)))
        (left_out,) = broadcast_object_list([left_out])
    for split, image_set in sets.items():
        broken = set(left_out[split])
        sets[split] = image_set.without([i for i, name in enumerate(image_set.names) if name in broken])
        if not len(sets[split]):
            raise ValueError(f"{config.images.data_root}: none of the {split} images can be read; see failures.csv")
        counts = np.bincount(sets[split].labels.numpy(), minlength=len(image_set.classes))
        each = ", ".join(f"{name} {count}" for name, count in zip(image_set.classes, counts, strict=True))
        logger.info("%s: %d images of %s (%s)", split, len(sets[split]), image_set.name, each)
    return sets, left_out


def _start(
    config: FerConfig,
    sets: dict[str, ImageSet],
    folder: Path,
    accelerator: Accelerator,
    state: RunState | None,
    stop: StopRequest,
) -> Run:
    """Return a run at its beginning or where a state left it: at that epoch's start if its epochs had other steps."""
    per_epoch = steps_per_epoch(config, sets["train"], accelerator)
    curves = TrainingVisualizer(folder / "training_curves", accelerator.is_main_process)
    step, history, accuracies = (state.step, state.history, state.accuracies) if state else (0, [], [])
    begin = len(history) * per_epoch
    if step - begin != len(accuracies) or step > begin + per_epoch:
        step, accuracies = begin, []
    trainer = build_trainer(config, sets["train"], accelerator, step)
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    free = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    logger.info(
        "%s: %d weights, %d of them trained; %d epochs of %d steps, %d images a step, on %s",
        *(config.model.arch, weights, free, config.run.epochs, per_epoch),
        config.run.batch_size * config.run.grad_accum_steps * accelerator.num_processes,
        accelerator.device,
    )
    if state:
        trainer.load_state_dict(state.trainer, state.config.run.optimizer == config.run.optimizer)
        curves.take(state.curves)
    return Run(trainer, sets["val"], folder, per_epoch, curves, stop, history, accuracies)


def _bring_best(run: Run, resume: Path) -> None:
    """Copy the best network so far where the run goes on in another folder."""
    if run.history and resume.parent != run.folder and run.trainer.accelerator.is_main_process:
        for name in ("best.safetensors", "confusion.png"):
            if (resume.parent / name).is_file():
                shutil.copy2(resume.parent / name, run.folder / name)


def _epochs(run: Run) -> bool:
    """Run what is left of all epochs; return False when asked to stop."""
    settings = run.trainer.config.run
    while not (reason := end_reason(run.history, settings, run.score)):
        stopping = _steps(run)
        if not stopping:
            _end_epoch(run)
        elif run.trainer.accelerator.is_main_process:
            _save(run)
            logger.info("asked to stop: step %d is done, the state is in %s", run.trainer.step, run.folder)
        run.trainer.accelerator.wait_for_everyone()
        if stopping:
            return False
    best = best_entry(run.history, run.score)
    if best:
        logger.info("training ends: %s; best epoch %d with %s %.4f", reason, best["epoch"], run.score, best[run.score])
    return True


def _steps(run: Run) -> bool:
    """Run what is left of an epoch's steps; return whether asked to stop."""
    trainer, settings = run.trainer, run.trainer.config.run
    epoch = len(run.history) + 1
    end, first, began, stopping = epoch * run.per_epoch, trainer.step, time.monotonic(), False
    trainer.waited = 0.0
    losses = [math.inf if entry["val_loss"] is None else entry["val_loss"] for entry in run.history]
    while trainer.step < end and not stopping:
        rate = learning_rate(trainer.step, run.per_epoch, settings, losses)
        report = trainer.next_step(rate, run.stop)
        run.curves.record(trainer.step - 1, rate, report.loss, epoch)
        run.accuracies.append(report.accuracy)
        stopping = report.stop
        if (trainer.step - 1) % run.per_epoch % settings.log_every == 0 or trainer.step == end:
            _log(run, epoch, rate, report, (time.monotonic() - began) / (trainer.step - first), trainer.step - first)
        if settings.save_every and trainer.step % settings.save_every == 0 and not stopping:
            if trainer.accelerator.is_main_process:
                _save(run)
            trainer.accelerator.wait_for_everyone()
    return stopping


def _log(run: Run, epoch: int, rate: float, report: StepReport, each: float, count: int) -> None:
    """Write one line about a step and tell the trackers; times are means over this epoch's steps so far."""
    left = epoch * run.per_epoch - run.trainer.step
    logger.info(
        "Train: epoch: [%d]  [%*d/%d]  eta: %s  lr: %.8f  loss: %.4f  acc: %.4f  time: %.3f  data: %.3f",
        epoch,
        len(str(run.per_epoch)),
        run.per_epoch - left,
        run.per_epoch,
        timedelta(seconds=int(each * left)),
        rate,
        report.loss,
        report.accuracy,
        each,
        run.trainer.waited / count,
    )
    values = {"loss": report.loss, "acc": report.accuracy, "lr": rate}
    run.trainer.accelerator.log(values, step=run.trainer.step)


def _end_epoch(run: Run) -> None:
    """Validate, then write networks, pictures, history and state; what tells that the epoch is over comes last."""
    trainer, config = run.trainer, run.trainer.config
    evaluation = validate(trainer, run.val_set)
    scores = expression_scores(evaluation, run.val_set.classes, config.multi_label)
    epoch = len(run.history) + 1
    means = {
        "lr": run.curves.lrs[-1],
        "train_loss": run.curves.epoch_mean(run.curves.losses, epoch),
        "train_acc": float(np.mean(run.accuracies)),
        **{f"val_{key}": value for key, value in scores.means.items()},
    }
    run.history.append(history_entry(epoch, trainer.step, means))
    run.accuracies = []
    run.curves.record_validation(epoch, scores.means["loss"])
    best = best_entry(run.history, run.score)
    is_best = best is not None and best["epoch"] == epoch
    if trainer.accelerator.is_main_process:
        _write_epoch(run, scores, is_best)
    told = "  ".join(f"{key} {value:.4f}" for key, value in means.items() if key != "lr")
    logger.info("epoch %d done: %s%s", epoch, told, "  (best so far)" if is_best else "")
    if evaluation.failures:
        logger.warning("validation left %d unreadable images out", len(evaluation.failures))
    trainer.accelerator.log(means, step=trainer.step)


def _write_epoch(run: Run, scores: ExpressionScores, is_best: bool) -> None:
    weights, card = run.trainer.kept.state_dict(), _card(run, scores)
    _require_finite(weights, run)
    if is_best:
        save_model(run.folder / "best.safetensors", weights, card)
        if scores.counts is not None:
            title = f"epoch {card.epoch}, accuracy {scores.means['acc']:.1%}"
            draw_confusion(run.folder / "confusion.png", scores.counts, card.classes, title)
    save_model(run.folder / "last.safetensors", weights, card)
    over = end_reason(run.history, run.trainer.config.run, run.score)
    if over or run.per_epoch >= LONG_EPOCH or card.epoch % HD_EVERY == 0:
        run.curves.plot_and_save()
        run.curves.save_data(run.curves.folder / "training_data.npz")
        draw_scores(run.folder / "accuracy.png", run.history, run.score)
    write_history(run.folder / "history.json", run.history)
    _save(run)


def _require_finite(weights: dict[str, torch.Tensor], run: Run) -> None:
    """Raise FloatingPointError where a weight is not finite: running statistics can be while no loss was."""
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"step {run.trainer.step}: weights are not finite ({broken[0]} and {len(broken) - 1} more); lower run.lr "
            "or set run.max_grad_norm; the last state is kept"
        )


def _card(run: Run, scores: ExpressionScores) -> ModelCard:
    config, images = run.trainer.config, run.val_set
    return ModelCard(
        model=config.model,
        classes=images.classes,
        input=images.spec,
        multi_label=config.multi_label,
        aligned=config.images.align,
        data=images.name,
        epoch=len(run.history),
        scores=scores.means,
    )


def _save(run: Run) -> None:
    arrays = run.curves.arrays()
    trainer = run.trainer
    state = RunState(
        trainer.config, trainer.step, run.history, run.accuracies, arrays, trainer.state_dict(), run.left_out
    )
    save_state(run.folder / "resume.pt", state)


def validate(trainer: Trainer, val_set: ImageSet) -> Evaluation:
    """Return what the network to keep says of a set; each process looks at a part, all get the whole."""
    config, accelerator = trainer.config, trainer.accelerator
    part = val_set
    if accelerator.num_processes > 1:
        for buffer in trainer.kept.buffers():  # each process has the running statistics of its own images
            torch.distributed.broadcast(buffer, src=0)
        chunks = np.array_split(np.arange(len(val_set)), accelerator.num_processes)
        part = val_set.without([i for k, chunk in enumerate(chunks) if k != accelerator.process_index for i in chunk])
    with accelerator.autocast():
        own = evaluate(
            trainer.kept,
            part,
            config.run.batch_size,
            accelerator.device,
            config.run.num_workers,
            multi_label=config.multi_label,
        )
    return joined(gather_object([own]), config.multi_label)
