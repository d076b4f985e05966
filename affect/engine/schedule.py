"""Learning rate: a pure function of the step and, for plateau, of the validation losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from affect.core.config import RunSettings


def learning_rate(step: int, per_epoch: int, total: int, run: RunSettings, val_losses: Sequence[float] = ()) -> float:
    """Return the rate of `step` (0-based) in a run of `total` steps, `per_epoch` of them an epoch.

    The warm-up rises in a line from warmup_lr at step 0 to init_lr. After it, with p running from 0 to 1 at the
    run's end and e counting epochs since the warm-up: linear min_lr + (init_lr - min_lr) (1 - p); cosine min_lr +
    (init_lr - min_lr) (1 + cos(pi p)) / 2; exponential init_lr gamma^e; plateau init_lr times plateau_factor for
    every fall; none goes below min_lr.
    """
    top, warm = run.init_lr, run.warmup_steps or round(run.warmup_epochs * per_epoch)
    if step < warm:
        start = run.warmup_lr
        if start is None:
            start = top if run.warmup_steps else top / (warm + 1)
        return start + (top - start) * step / warm
    if run.schedule_by == "epoch":
        step = step // per_epoch * per_epoch
    done = max(0, step - warm)
    progress = min(1.0, done / max(1, total - warm))
    if run.scheduler == "cosine":
        return run.min_lr + (top - run.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if run.scheduler == "linear":
        return run.min_lr + (top - run.min_lr) * (1 - progress)
    if run.scheduler == "exponential":
        return max(run.min_lr, top * run.gamma ** (done / per_epoch))
    if run.scheduler == "plateau":
        return max(run.min_lr, top * run.plateau_factor ** falls(val_losses, run.plateau_patience))
    return top


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
