"""Mixing the images of a batch: mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mix(
    images: Tensor, targets: Tensor, mixup_alpha: float, cutmix_alpha: float, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return a batch mixed with itself: images [B, C, H, W] and their targets [B, L], a pure function of `seed`.

    An alpha of 0 leaves that kind out; with both, each batch draws one of the two. `seed` is any whole
    numbers that name the batch, e.g. (seed, step, rank). Labels are smoothed after mixing, if at all.
    """
    kinds = [kind for kind, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha)) if alpha > 0]
    if not kinds:
        return images, targets
    rng = np.random.default_rng(tuple(seed))
    kind = kinds[rng.integers(len(kinds))]
    alpha = mixup_alpha if kind is mixup else cutmix_alpha
    kept = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if kind is mixup:
        return mixup(images, targets, kept, partner)
    centre = (float(rng.random()), float(rng.random()))
    return cutmix(images, targets, kept, partner, centre)


def mixup(images: Tensor, targets: Tensor, kept: float, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [B, C, H, W] and targets [B, L], each `kept` of its own and the rest of its partner [B]."""
    return (
        kept * images + (1 - kept) * images[partner],
        kept * targets + (1 - kept) * targets[partner],
    )


def cutmix(
    images: Tensor, targets: Tensor, kept: float, partner: Tensor, centre: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return images [B, C, H, W] with a box of the partner's [B] pasted in, and targets [B, L] mixed by its area.

    The box has the image's shape and 1 - `kept` of its area around `centre` (shares of height and width);
    what reaches over the edge is cut off, so the targets follow the pixels that were really pasted.
    """
    height, width = images.shape[-2:]
    (top, bottom), (left, right) = (_span(size, kept, at) for size, at in zip((height, width), centre, strict=True))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * targets + (1 - kept) * targets[partner]


def _span(size: int, kept: float, at: float) -> tuple[int, int]:
    """Return first and last + 1 pixel of the box along one side."""
    length = round(size * (1 - kept) ** 0.5)
    start = int(at * size) - length // 2
    return max(start, 0), min(start + length, size)
