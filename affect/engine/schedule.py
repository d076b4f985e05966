"""Learning rate: a linear warm-up, then a cosine; a pure function of the step."""

from __future__ import annotations

import math

from affect.data.config import RunConfig


def learning_rate(step: int, run: RunConfig) -> float:
    """Return the rate of iteration `step` (0-based, counted over the whole run).

    Up to `warmup_steps`: warmup_lr + (init_lr - warmup_lr) * step / warmup_steps; after it:
    min_lr + (init_lr - min_lr) * (1 + cos(pi * progress)) / 2, progress running from 0 to 1
    between the end of the warm-up and `max_epoch * iters_per_epoch`.
    """
    if step < run.warmup_steps:
        start = run.init_lr if run.warmup_lr is None else run.warmup_lr
        return start + (run.init_lr - start) * step / run.warmup_steps
    progress = (step - run.warmup_steps) / max(1, run.total_steps - run.warmup_steps)
    return run.min_lr + (run.init_lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
