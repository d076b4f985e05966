"""Learning rate of the image track: a pure function of the step and, for plateau, of the validation losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from affect.expressions.config import FerRunConfig


def learning_rate(step: int, per_epoch: int, run: FerRunConfig, val_losses: Sequence[float] = ()) -> float:
    """Return the rate of `step` (0-based, counted over the whole run of `epochs` times `per_epoch` steps).

    The warm-up rises in a line from 0 (not included) to lr. After it, with p running from 0 to 1 at the
    run's end and e counting epochs since the warm-up: cosine min_lr + (lr - min_lr) (1 + cos(pi p)) / 2;
    exponential lr gamma^e; plateau lr times plateau_factor for every fall; none goes below min_lr.
    """
    warm, total = round(run.warmup_epochs * per_epoch), run.epochs * per_epoch
    if step < warm:
        return run.lr * (step + 1) / (warm + 1)
    if run.schedule_by == "epoch":
        step = step // per_epoch * per_epoch
    done = max(0, step - warm)
    if run.scheduler == "cosine":
        progress = min(1.0, done / max(1, total - warm))
        return run.min_lr + (run.lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if run.scheduler == "exponential":
        return max(run.min_lr, run.lr * run.gamma ** (done / per_epoch))
    if run.scheduler == "plateau":
        return max(run.min_lr, run.lr * run.plateau_factor ** falls(val_losses, run.plateau_patience))
    return run.lr


def falls(losses: Sequence[float], patience: int) -> int:
    """Return how often the rate has fallen: each time more than `patience` epochs went by without a lower loss.

    The count of such epochs begins anew after a fall, as in torch's ReduceLROnPlateau (threshold 0).
    """
    best, waited, fallen = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited > patience:
            waited, fallen = 0, fallen + 1
    return fallen
