"""A network over a whole split: probabilities of every image that can be read, and their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Dataset

from affect.core.failures import Failure
from affect.data.sampling import Draw
from affect.engine.stop import ignore_sigterm
from affect.expressions.image_files import ImageError
from affect.expressions.image_set import ImageSet, NoFaceError, collate
from affect.expressions.predict import probabilities_of
from affect.expressions.samples import ImageBatch, Sample


@dataclass(frozen=True)
class Evaluation:
    """What a network says of N images, in the order of their set."""

    names: list[str]
    labels: np.ndarray
    """int64 [N]."""
    targets: np.ndarray
    """float32 [N, L]."""
    probabilities: np.ndarray
    """float32 [N, L]."""
    loss: float
    """Mean cross-entropy of the targets (binary, and a mean over classes, with multi-label); NaN without images."""
    failures: list[Failure]
    """Images that could not be read; they are not among the N."""


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    batch_size: int,
    device: torch.device | str,
    num_workers: int = 0,
    flip: bool = False,
    multi_label: bool = False,
) -> Evaluation:
    """Return what a network says of every image of a set, plain (not augmented), the last batch included.

    flip: mean of the probabilities of an image and its mirror image. The model is left in evaluation mode.
    """
    device = torch.device(device)
    loader = DataLoader(
        Readable(image_set),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_readable,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_sigterm,
    )
    console = Console(stderr=True)
    model.eval()
    names, labels, targets, probabilities, failures = [], [], [], [], []
    for batch, failed in track(loader, "evaluating", transient=True, console=console, disable=not console.is_terminal):
        failures += failed
        if batch is not None:
            names += batch.names
            labels.append(batch.labels.numpy())
            targets.append(batch.targets.numpy())
            images = batch.images.to(device, non_blocking=True)
            probabilities.append(probabilities_of(model, images, multi_label, flip).cpu().numpy())
    empty = np.zeros((0, len(image_set.classes)), np.float32)
    true, found = np.concatenate([empty, *targets]), np.concatenate([empty, *probabilities])
    loss = mean_loss(true, found, multi_label)
    return Evaluation(names, np.concatenate([np.zeros(0, np.int64), *labels]), true, found, loss, failures)


def mean_loss(targets: np.ndarray, probabilities: np.ndarray, multi_label: bool) -> float:
    """Return the mean cross-entropy of probabilities [N, L] against targets [N, L] in nats; NaN without images."""
    if not len(targets):
        return float("nan")
    tiny = np.finfo(np.float32).tiny
    found, true = probabilities.astype(np.float64), targets.astype(np.float64)
    losses = -true * np.log(np.maximum(found, tiny))
    if multi_label:
        losses -= (1 - true) * np.log(np.maximum(1 - found, tiny))
        return float(losses.mean())
    return float(losses.sum(axis=1).mean())


def joined(parts: Sequence[Evaluation], multi_label: bool = False) -> Evaluation:
    """Return the evaluations of the parts of a set as one, in the order of the parts."""
    targets, probabilities, labels = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("targets", "probabilities", "labels")
    )
    names = [name for part in parts for name in part.names]
    failures = [failure for part in parts for failure in part.failures]
    loss = mean_loss(targets, probabilities, multi_label)
    return Evaluation(names, labels, targets, probabilities, loss, failures)


class Readable(Dataset):
    """The images of a set, a Failure in place of one that cannot be read: a worker that raised would end it all."""

    def __init__(self, image_set: ImageSet) -> None:
        """Stand before a set."""
        self.image_set = image_set

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, visit: Draw | int) -> Sample | Failure:
        """Return what the set has, or why it cannot be read."""
        try:
            return self.image_set[visit]
        except (ImageError, OSError) as error:
            name = self.image_set.names[visit.index if isinstance(visit, Draw) else visit]
            return Failure(name, "align" if isinstance(error, NoFaceError) else "decode", str(error))


def collate_readable(items: Sequence[Sample | Failure]) -> tuple[ImageBatch | None, list[Failure]]:
    """Return the batch of what could be read, None when nothing could, and the failures."""
    samples = [item for item in items if isinstance(item, Sample)]
    return collate(samples) if samples else None, [item for item in items if isinstance(item, Failure)]
