"""A network in training: its batches, loss and optimizer, one step at a time.

trainer = build_trainer(config, sets["train"], start_accelerator(config.run), last_step=100)
losses = [trainer.next_step(rate).loss for rate in rates]
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader

from affect.core.device import keep_freed_memory
from affect.core.failures import Failure
from affect.data.sampling import StepBatches
from affect.engine.stop import StopRequest, ignore_sigterm
from affect.expressions.balanced import ClassBalancedBatches
from affect.expressions.config import FerConfig, FerRunConfig
from affect.expressions.ema import WeightAverage
from affect.expressions.image_files import ImageError
from affect.expressions.image_set import ImageSet, Readable, collate_readable
from affect.expressions.losses import ExpressionLoss, class_weights
from affect.expressions.mixing import mix
from affect.expressions.models import ExpressionModel, build_model
from affect.expressions.sam import SAM
from affect.expressions.samples import ImageBatch
from affect.expressions.step import StepReport, training_step

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Everything that moves the weights."""

    config: FerConfig
    model: ExpressionModel
    wrapped: nn.Module
    """The model as accelerate wrapped it: the one to call."""
    optimizer: torch.optim.Optimizer
    loss_of: ExpressionLoss
    average: WeightAverage | None
    batches: Generator[tuple[ImageBatch | None, list[Failure]]]
    """Closing them ends their workers."""
    accelerator: Accelerator
    step: int = 0
    """Moves of the weights so far."""
    waited: float = 0.0
    """Seconds spent waiting for batches so far."""

    @property
    def kept(self) -> nn.Module:
        """The network to validate and keep: the moving average where there is one."""
        return self.average.model if self.average else self.model

    def next_step(self, rate: float, stop: StopRequest | None = None) -> StepReport:
        """Move the weights once at a learning rate.

        Raises FloatingPointError naming the images of a step whose loss or gradient is not finite,
        ImageError for an image that cannot be read.
        """
        run = self.config.run
        window = [self._next_batch(number) for number in range(run.grad_accum_steps)]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.wrapped.train()
        seed = (run.seed, self.step, self.accelerator.process_index)
        report = training_step(
            self.wrapped, self.optimizer, window, self.loss_of, self.accelerator, seed, run.max_grad_norm, stop
        )
        if not report.finite:
            raise self._not_finite(report, window)
        if self.average:
            self.average.update(self.model)
        self.step += 1
        return report

    def _next_batch(self, number: int) -> ImageBatch:
        """Return the next batch of the step, on the device and mixed."""
        asked = time.monotonic()
        batch, failures = next(self.batches)
        self.waited += time.monotonic() - asked
        if failures:
            raise ImageError(f"{failures[0].reason}; set images.check_images to True, and such images are left out")
        settings, device = self.config.images, self.accelerator.device
        layout = torch.channels_last if self.config.model.channels_last else torch.preserve_format
        images = batch.images.to(device, non_blocking=True, memory_format=layout)
        targets = batch.targets.to(device, non_blocking=True)
        seed = (self.config.run.seed, self.step, self.accelerator.process_index, number)
        images, targets = mix(images, targets, settings.mixup, settings.cutmix, seed)
        return replace(batch, images=images, targets=targets)

    def _not_finite(self, report: StepReport, window: list[ImageBatch]) -> FloatingPointError:
        """Return the error that names the images behind a loss; every process comes here together."""
        broken = [b.names for b, loss in zip(window, report.own_losses, strict=True) if not loss.isfinite()]
        names = gather_object([name for names in broken for name in names])
        names = names or gather_object([name for batch in window for name in batch.names])
        found = f"loss is {report.loss}" if not math.isfinite(report.loss) else "gradient is not finite"
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return FloatingPointError(
            f"step {self.step}: the {found} on images {', '.join(names[:10])}{more}; look at them, lower run.lr, or "
            "set run.max_grad_norm (or model.qk_norm, where there is attention); the last state is kept"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on: tensors and plain values."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any], same_optimizer: bool = True) -> None:
        """Go on from a state with this run's own settings (raises ValueError where the network is another one).

        same_optimizer: False leaves out moments that another kind of optimizer wrote.
        """
        try:
            self.model.load_state_dict(state["model"])
            if self.average and state["average"]:
                self.average.load_state_dict(state["average"])
            elif self.average:  # the run went without one so far
                self.average.model.load_state_dict(state["model"])
            if same_optimizer:
                groups = self.optimizer.state_dict()["param_groups"]  # its weight decay and so on, not the state's
                self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"expected the state of this network, found another one's: {reason}") from None
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def build_trainer(
    config: FerConfig,
    train_set: ImageSet,
    accelerator: Accelerator,
    first_step: int = 0,
    last_step: int | None = None,
) -> Trainer:
    """Return a trainer whose batches begin at step `first_step` and end before `last_step` (the run's end)."""
    run = config.run
    set_seed(run.seed)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    model = build_model(config.model, len(train_set.classes)).to(accelerator.device)
    average = WeightAverage(model, run.ema) if run.ema else None
    if config.model.compile:
        model.compile()
    last = run.epochs * steps_per_epoch(config, train_set, accelerator) if last_step is None else last_step
    return Trainer(
        config,
        model,
        accelerator.prepare(model),
        build_optimizer(model, run),
        build_loss(config, train_set),
        average,
        (batch for batch in _loader(config, train_set, first_step, last, accelerator)),
        accelerator,
        first_step,
    )


def steps_per_epoch(config: FerConfig, train_set: ImageSet, accelerator: Accelerator) -> int:
    """Return how many moves see as many images as there are; the last one goes on with the next cycle's."""
    images = config.run.batch_size * config.run.grad_accum_steps * accelerator.num_processes
    return math.ceil(len(train_set) / images)


def build_loss(config: FerConfig, train_set: ImageSet) -> ExpressionLoss:
    """Return the configured loss, its class weights those of the training images."""
    run = config.run
    weights = class_weights(run.class_weight, train_set.targets, train_set.classes)
    if weights is not None and config.images.balanced:
        logger.warning("run.class_weight and images.balanced both favour rare classes; one of the two is enough")
    gamma = run.focal_gamma if run.loss_type == "focal" else 0.0
    return ExpressionLoss(config.multi_label, run.label_smoothing, gamma, weights)


def build_optimizer(model: nn.Module, run: FerRunConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer over what is trainable, SAM around it where asked for.

    Weight decay is for matrices and kernels; biases, norms and scales do without it.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": run.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if run.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimizer]
        optimizer = kind(groups, lr=run.lr, betas=(run.beta1, run.beta2), eps=run.eps, fused=True)
    return SAM(optimizer, run.sam_rho, run.sam_adaptive) if run.sam else optimizer


def _loader(config: FerConfig, train_set: ImageSet, first: int, last: int, accelerator: Accelerator) -> DataLoader:
    """Return this process's batches, grad_accum_steps of them for each of the steps `first` to `last`."""
    run = config.run
    places = {
        "batch_size": run.batch_size,
        "seed": run.seed,
        "first": first * run.grad_accum_steps,
        "last": last * run.grad_accum_steps,
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
    }
    if config.images.balanced:
        sampler = ClassBalancedBatches(labels=train_set.labels.numpy(), **places)
    else:
        sampler = StepBatches(size=len(train_set), **places)
    return DataLoader(
        Readable(train_set),
        batch_sampler=sampler,
        num_workers=run.num_workers,
        collate_fn=collate_readable,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_sigterm,
        prefetch_factor=4 if run.num_workers else None,
    )
