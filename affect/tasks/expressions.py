"""Training a network that names expressions: python train.py --cfg-path train_configs/fer_*.yaml

{run folder}/
    best.safetensors    the network of the epoch with the best validation accuracy (macro F1 with multi-label)
    last.safetensors    that of the last epoch; both hold the moving average of the weights where run.ema is on
    history.json        one entry an epoch: rate, training loss and accuracy, validation scores
    confusion.png       of the best epoch; accuracy.png and training_curves/: over all epochs
    failures.csv        images that could not be used, and why
A checkpoint holds network.safetensors and left_out.json beside the engine's own files.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from affect.core.config import ConfigError
from affect.core.failures import write_failures
from affect.core.files import write_json
from affect.core.plots import draw_confusion, draw_lines
from affect.core.reading import read_object
from affect.data.sampling import StepBatches
from affect.engine.curves import HD_EVERY, LONG_EPOCH
from affect.engine.launch import agreed
from affect.engine.loop import train
from affect.engine.sharding import whole
from affect.engine.stop import StopRequest
from affect.engine.task import Size, Task, Watched, Weights
from affect.expressions.balanced import ClassBalancedBatches
from affect.expressions.config import FerConfig, load_fer_config
from affect.expressions.evaluation import evaluate, joined
from affect.expressions.image_files import ImageError
from affect.expressions.image_set import ImageSet, Readable, check_images, collate, open_images
from affect.expressions.losses import ExpressionLoss, class_weights
from affect.expressions.mixing import mix
from affect.expressions.models import ExpressionModel, build_model, check_settings
from affect.expressions.network_file import ModelCard, read_network, save_model
from affect.expressions.presets import data_spec
from affect.expressions.samples import ImageBatch, InputSpec
from affect.expressions.scores import ExpressionScores, expression_scores

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.json"
"""Split -> images that could not be read when the run began; one that goes on leaves out the same."""


def train_expressions(config: FerConfig, cfg_path: str | Path) -> bool:
    """Train as a configuration says; return False when SIGTERM ended it early, after a checkpoint.

    Raises ValueError for settings or data that cannot be used, ImageError for an image that cannot be read,
    FloatingPointError naming the images of a step whose loss or gradient is not finite.
    """
    check_settings(config.model)  # before all images are read
    return train(config, cfg_path, partial(open_task, config))


@dataclass
class ExpressionTask(Task):
    """Images, each named an expression or several."""

    config: FerConfig
    model: ExpressionModel
    sets: dict[str, ImageSet]
    """train and val."""
    left_out: dict[str, list[str]]
    """Split -> images that cannot be read."""
    image_flops: int = 0
    """Operations that the network takes for an image; 0 where that is not known."""
    scores: ExpressionScores | None = field(default=None, init=False)
    """Of the last validation."""

    noun = "images"

    def __post_init__(self) -> None:
        self.run = self.config.run
        self.watched = watched(self.config)
        self.loss_of = build_loss(self.config, self.sets["train"])

    def steps(self, processes: int) -> tuple[int, int]:
        """Return how many steps see as many images as there are, the last one going on with the next cycle's."""
        images = self.run.batch_size_train * self.run.gradient_accumulation_steps * processes
        epoch = math.ceil(len(self.sets["train"]) / images)
        return epoch, self.run.max_epoch * epoch

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Generator[ImageBatch]:
        """Return this process's batches from step `first` to before `last`; an image that cannot be read raises."""
        train_set, places = self.sets["train"], self.places(first, last, accelerator)
        if self.config.images.balanced:
            sampler = ClassBalancedBatches(size=len(train_set), labels=train_set.labels, **places)
        else:
            sampler = StepBatches(size=len(train_set), **places)
        for batch, failures in self.loader(Readable(train_set), sampler, collate, accelerator):
            if failures:
                raise ImageError(f"{failures[0].reason}; set images.check_images to True, and such images are left out")
            yield batch

    def to_device(self, batch: ImageBatch, device: torch.device, seed: tuple[int, ...]) -> ImageBatch:
        """Return a batch on a device and mixed."""
        layout = torch.channels_last if self.config.model.channels_last else torch.preserve_format
        images = batch.images.to(device, non_blocking=True, memory_format=layout)
        targets = batch.targets.to(device, non_blocking=True)
        images, targets = mix(images, targets, self.config.images.mixup, self.config.images.cutmix, seed)
        return replace(batch, images=images, targets=targets)

    def size(self, batch: ImageBatch) -> Size:
        """Return how many images a batch has."""
        return Size(len(batch.names), len(batch.names))

    def loss(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss, and the share of images whose likeliest class is that of the highest target."""
        logits = model(batch.images)
        right = logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)
        return self.loss_of(logits, batch.targets), {"acc": right.float().mean()}

    def flops(self, size: Size) -> float:
        """Return about how many operations a step takes: forward, twice that backward, and all of it again with SAM."""
        return 3.0 * self.image_flops * size.samples * (2 if self.run.sam else 1)

    def validate(self, model: nn.Module, accelerator: Accelerator, stop: StopRequest) -> dict[str, float] | None:
        """Return the scores of the val images; each process looks at a part, all get the whole."""
        val_set, processes = self.sets["val"], accelerator.num_processes
        part = val_set
        if processes > 1:
            for buffer in self.model.buffers():  # each process has the running statistics of its own images
                torch.distributed.broadcast(buffer, src=0)
            chunks = np.array_split(np.arange(len(val_set)), processes)
            part = val_set.take(chunks[accelerator.process_index])
        with accelerator.autocast():
            # the bare network: the parts may differ in length, and DDP would wait for its like at each batch
            own = evaluate(
                self.model,
                part,
                self.run.batch_size_train,
                accelerator.device,
                self.run.num_workers,
                multi_label=self.config.multi_label,
                stop=stop,
            )
        parts = gather_object([None if stop.asked else own])
        if any(each is None for each in parts):
            return None
        found = joined(parts, self.config.multi_label)
        if found.failures:
            logger.warning("validation left %d unreadable images out", len(found.failures))
        self.scores = expression_scores(found, val_set.classes, self.config.multi_label)
        return {f"val_{key}": value for key, value in self.scores.means.items()}

    def weights(self) -> Weights:
        """Return the whole network."""
        return {"network": {name: whole(value) for name, value in self.model.state_dict().items()}}

    def save(self, folder: Path, weights: Weights) -> None:
        """Write network.safetensors and left_out.json."""
        save_model(folder / "network.safetensors", weights["network"], self._card(0))
        write_json(folder / LEFT_OUT, self.left_out)

    def load(self, checkpoint: Path) -> None:
        """Take the network of a checkpoint."""
        path = checkpoint / "network.safetensors"
        try:
            self.model.load_state_dict(read_network(path)[1])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: expected the state of this network, found another one's: {reason}") from None

    def begin(self, folder: Path, checkpoint: Path | None) -> None:
        """Copy the best network so far where the run goes on in another folder."""
        if checkpoint and checkpoint.parent != folder:
            for name in ("best.safetensors", "confusion.png", "failures.csv"):
                if (checkpoint.parent / name).is_file() and not (folder / name).is_file():
                    shutil.copy2(checkpoint.parent / name, folder / name)

    def end_epoch(self, folder: Path, weights: Weights, history: list[dict[str, Any]], best: bool, last: bool) -> None:
        """Write networks, history and pictures."""
        card = self._card(len(history))
        if best:
            save_model(folder / "best.safetensors", weights["network"], card)
            if self.scores and self.scores.counts is not None:
                title = f"epoch {card.epoch}, accuracy {self.scores.means['acc']:.1%}"
                draw_confusion(folder / "confusion.png", self.scores.counts, card.classes, title)
        save_model(folder / "last.safetensors", weights["network"], card)
        if last or history[0]["step"] >= LONG_EPOCH or card.epoch % HD_EVERY == 0:
            draw_scores(folder / "accuracy.png", history, self.watched.score)
        write_json(folder / "history.json", history)

    def _card(self, epoch: int) -> ModelCard:
        config, images = self.config, self.sets["val"]
        return ModelCard(
            model=config.model,
            classes=images.classes,
            input=images.spec,
            multi_label=config.multi_label,
            aligned=config.images.align,
            data=images.name,
            epoch=epoch,
            scores=self.scores.means if self.scores and epoch else {},
        )


def watched(config: FerConfig) -> Watched:
    """Return what makes an epoch the best one: accuracy, or macro F1 where several classes may be true."""
    if config.multi_label:
        return Watched("val_macro_f1", "validation macro F1", higher=True)
    return Watched("val_acc", "validation accuracy", higher=True)


def open_task(
    config: FerConfig, accelerator: Accelerator, folder: Path, checkpoint: Path | None = None
) -> ExpressionTask:
    """Return the task with images and network opened; raises ValueError for what cannot be used."""
    sets, left_out = open_sets(config, folder, accelerator, checkpoint)
    set_seed(config.run.seed)
    settings = config.model
    if config.run.gradient_checkpointing:
        settings = settings.model_copy(update={"grad_checkpointing": True})
    model = build_model(settings, len(sets["train"].classes))
    flops = forward_flops(model, sets["train"].spec) if accelerator.device.type == "cuda" else 0
    if settings.compile or config.run.compile:
        model.compile()
    weights = sum(weight.numel() for weight in model.parameters())
    free = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    logger.info("%s: %d weights, %d of them trained, on %s", settings.arch, weights, free, accelerator.device)
    return ExpressionTask(config, model, sets, left_out, flops)


def open_sets(
    config: FerConfig, folder: Path, accelerator: Accelerator, checkpoint: Path | None = None
) -> tuple[dict[str, ImageSet], dict[str, list[str]]]:
    """Return the train and val images that can be read, and the names of the others; log how many of each class.

    The main process reads every image once (images.check_images) and writes failures.csv. A run that
    goes on leaves out what it left out before, so that its order is the same.
    """
    images = config.images
    sets = open_images(images, data_spec(config.model, images), ("train", "val"), seed=config.run.seed)
    for split, why in (("train", "train on"), ("val", "validate on; set images.val_split above 0")):
        if split not in sets:
            raise ValueError(f"{images.data_root}: expected images to {why}, found none")
    left_out = agreed(lambda: _left_out_before(config, checkpoint) or _left_out(config, sets, folder))
    for split, image_set in sets.items():
        broken = set(left_out[split])
        sets[split] = image_set.take([i for i, name in enumerate(image_set.names) if name not in broken])
        if not len(sets[split]):
            raise ValueError(f"{images.data_root}: none of the {split} images can be read; see failures.csv")
        counts = np.bincount(sets[split].labels, minlength=len(image_set.classes))
        each = ", ".join(f"{name} {count}" for name, count in zip(image_set.classes, counts, strict=True))
        logger.info("%s: %d images of %s (%s)", split, len(sets[split]), image_set.name, each)
    return sets, left_out


def _left_out_before(config: FerConfig, checkpoint: Path | None) -> dict[str, list[str]] | None:
    """Return what a run that goes on with the same images left out; None where there is none."""
    if checkpoint is None or load_fer_config(checkpoint / "config.yaml").images != config.images:
        return None
    return read_object(checkpoint / LEFT_OUT, "the images that the run leaves out", kind=ConfigError)


def _left_out(config: FerConfig, sets: dict[str, ImageSet], folder: Path) -> dict[str, list[str]]:
    """Look at every image, list failures in a table and return the names of those that cannot be read."""
    found = [failure for image_set in sets.values() for failure in image_set.failures]
    left_out = {}
    for split, image_set in sets.items():
        failures = check_images(image_set, config.run.num_workers) if config.images.check_images else []
        left_out[split] = [failure.name for failure in failures]
        found += failures
    write_failures(folder / "failures.csv", dict.fromkeys(found))
    return left_out


def build_loss(config: FerConfig, train_set: ImageSet) -> ExpressionLoss:
    """Return the configured loss, its class weights those of the training images."""
    run = config.run
    weights = class_weights(run.class_weight, torch.from_numpy(train_set.targets), train_set.classes)
    if weights is not None and config.images.balanced:
        logger.warning("run.class_weight and images.balanced both favour rare classes; one of the two is enough")
    gamma = run.focal_gamma if run.loss_type == "focal" else 0.0
    return ExpressionLoss(config.multi_label, run.label_smoothing, gamma, weights)


def forward_flops(model: nn.Module, spec: InputSpec) -> int:
    """Return how many operations a network takes for an image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, spec.channels, spec.size, spec.size))
    return counter.get_total_flops()


def draw_scores(path: Path, history: list[dict[str, Any]], score: str) -> Path:
    """Draw accuracy and macro F1 of each epoch, the first one with the best `score` marked; return the path."""
    keys = [key for key in ("train_acc", "val_acc", "val_exact_match", "val_macro_f1") if key in history[0]]
    epochs = [entry["epoch"] for entry in history]
    lines = {key: (epochs, [math.nan if entry[key] is None else entry[key] for entry in history]) for key in keys}
    known = [entry for entry in history if entry[score] is not None]
    best = max(known, key=lambda entry: entry[score], default=None)
    marked = {f"best epoch {best['epoch']}: {best[score]:.1%}": best["epoch"]} if best else {}
    dots = {key: {"marker": "o", "markersize": 3} for key in keys}
    return draw_lines(path, lines, dots, marked, xlabel="epoch", ylabel="share", ylim=(0, 1))
