"""Mixing the images of a batch: mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019).

torchvision's and timm's own draw from the process's random numbers, which dropout reads, too, and pair an image
with its neighbour in the batch; here the draw is a pure function of the batch's place in the run, so that a run
goes on to the bit.
"""

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
    kinds = [(kind, alpha) for kind, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha)) if alpha > 0]
    if not kinds:
        return images, targets
    rng = np.random.default_rng(tuple(seed))
    kind, alpha = kinds[rng.integers(len(kinds))]
    kept = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    return kind(images, targets, kept, partner, *(() if kind is mixup else (rng.random(2).tolist(),)))


def mixup(images: Tensor, targets: Tensor, kept: float, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [B, C, H, W] and targets [B, L], each `kept` of its own and the rest of its partner [B]."""
    return tuple(kept * own + (1 - kept) * own[partner] for own in (images, targets))


def cutmix(
    images: Tensor, targets: Tensor, kept: float, partner: Tensor, centre: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return images [B, C, H, W] with a box of the partner's [B] pasted in, and targets [B, L] mixed by its area.

    The box has the image's shape and 1 - `kept` of its area around `centre` (shares of height and width);
    what reaches over the edge is cut off, so the targets follow the pixels that were really pasted.
    """
    spans = []
    for size, at in zip(images.shape[-2:], centre, strict=True):
        length = round(size * (1 - kept) ** 0.5)
        start = int(at * size) - length // 2
        spans.append(slice(max(start, 0), min(start + length, size)))
    rows, columns = spans
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partner, :, rows, columns]
    pasted = mixed[0, 0, rows, columns].numel() / mixed[0, 0].numel()
    return mixed, (1 - pasted) * targets + pasted * targets[partner]
