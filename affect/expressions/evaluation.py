"""A network over a whole split: probabilities of every image that can be read, and their loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from affect.core.failures import Failure
from affect.engine.stop import StopRequest
from affect.expressions.image_set import ImageSet, Readable, loader_of, tracked
from affect.expressions.predict import probabilities_of


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
    stop: StopRequest | None = None,
) -> Evaluation:
    """Return what a network says of every image of a set, plain (not augmented), the last batch included.

    flip: mean of the probabilities of an image and its mirror image. The model is left in evaluation mode. When
    asked to stop it looks at no more images.
    """
    device = torch.device(device)
    loader = loader_of(Readable(image_set), num_workers, device.type, batch_size=batch_size)
    model.eval()
    empty = np.zeros((0, len(image_set.classes)), np.float32)
    parts = [Evaluation([], np.zeros(0, np.int64), empty, empty, math.nan, failures := [])]
    for batch, failed in tracked(loader, "evaluating"):
        if stop and stop.asked:
            break
        failures += failed
        if batch is not None:
            images = batch.images.to(device, non_blocking=True)
            found = probabilities_of(model, images, multi_label, flip).cpu().numpy()
            parts.append(Evaluation(batch.names, batch.labels.numpy(), batch.targets.numpy(), found, math.nan, []))
    return joined(parts, multi_label)


def joined(parts: Sequence[Evaluation], multi_label: bool = False) -> Evaluation:
    """Return the evaluations of the parts of a set as one, in the order of the parts, and its loss."""
    targets, probabilities, labels = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("targets", "probabilities", "labels")
    )
    names = [name for part in parts for name in part.names]
    failures = [failure for part in parts for failure in part.failures]
    tiny = np.finfo(np.float32).tiny
    found, true = probabilities.astype(np.float64), targets.astype(np.float64)
    losses = -true * np.log(np.maximum(found, tiny))
    if multi_label:
        losses -= (1 - true) * np.log(np.maximum(1 - found, tiny))
    loss = float((losses if multi_label else losses.sum(axis=1)).mean()) if len(losses) else math.nan
    return Evaluation(names, labels, targets, probabilities, loss, failures)
