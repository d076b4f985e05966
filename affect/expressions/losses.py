"""Losses over targets that may be soft, mixed or several at once; smoothing comes after mixing, so it always holds.

Focal loss: Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017). Label smoothing: Szegedy et al.,
"Rethinking the Inception Architecture for Computer Vision" (CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class ExpressionLoss:
    """Mean loss of a batch: logits [B, L] and targets [B, L] -> a number in nats."""

    multi_label: bool = False
    """Each class is a question of its own (sigmoid); else they are one distribution (softmax)."""
    smoothing: float = 0.0
    """Share of each target that is spread evenly over the classes; over yes and no with multi-label."""
    focal_gamma: float = 0.0
    """Weight each answer by its error to this power; 0 is cross-entropy."""
    class_weights: Tensor | None = None
    """[L] weight of each class."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch, and over the classes with multi-label."""
        logits = logits.float()  # under mixed precision they come in half
        targets = smoothed(targets, self.smoothing, self.multi_label)
        if self.multi_label:
            losses = -targets * self._focal(logsigmoid(logits)) - (1 - targets) * self._focal(logsigmoid(-logits))
        else:
            losses = -targets * self._focal(logits.log_softmax(dim=1))
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses.device)
        return losses.mean() if self.multi_label else losses.sum(dim=1).mean()

    def _focal(self, logs: Tensor) -> Tensor:
        """Return log-probabilities weighted by what is wrong about them."""
        if not self.focal_gamma:
            return logs
        # 1 - p by expm1, so that the power's gradient stays finite where p is 1
        return (-torch.expm1(logs)).clamp_min(torch.finfo(logs.dtype).tiny) ** self.focal_gamma * logs


def smoothed(targets: Tensor, smoothing: float, multi_label: bool = False) -> Tensor:
    """Return targets [B, L] with a share spread evenly over the classes; over yes and no with multi-label."""
    if not smoothing:
        return targets
    return targets * (1 - smoothing) + smoothing / (2 if multi_label else targets.shape[1])


def class_weights(setting: str | Sequence[float] | None, targets: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Return weights [L] of the classes whose mean over the training images (targets [N, L]) is 1.

    setting: "balanced" (each class weighs by the inverse of its share), weights in the order of the
    classes, or None. A class without images gets weight 0 when balanced. Raises ValueError for a wrong number.
    """
    if setting is None:
        return None
    shares = targets.double().mean(dim=0)
    if setting == "balanced":
        weights = torch.where(shares > 0, 1 / shares.clamp_min(torch.finfo(torch.double).tiny), 0.0)
    else:
        if len(setting) != len(classes) or min(setting) < 0 or max(setting) <= 0:
            raise ValueError(
                f"run.class_weight: expected {len(classes)} weights from 0 up, one for each of {', '.join(classes)}; "
                f"found {list(setting)}"
            )
        weights = torch.tensor(setting, dtype=torch.double)
    mean = (weights * shares).sum() / shares.sum()
    return (weights / mean).float()
