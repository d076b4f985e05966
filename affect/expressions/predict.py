"""Naming the expression of faces with a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affect.expressions.image_files import to_input
from affect.expressions.models import ExpressionModel
from affect.expressions.network_file import ModelCard
from affect.expressions.samples import NONE, SEEN

Corners = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the image; right and bottom are the first ones outside."""


@dataclass(frozen=True)
class FacePrediction:
    """One face and what its expression is called."""

    corners: Corners
    """Where it is in its image."""
    label: str
    """The likeliest class; all that are seen, joined by commas, where classes are independent."""
    probability: float
    """Of the likeliest class."""
    probabilities: dict[str, float]
    """Class -> probability, in the order of the network's outputs."""
    near_uniform: bool
    """Hardly any class is likelier than the others, as an untrained or broken network says it of every face."""

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as it is written into predictions.jsonl."""
        return {
            "box": list(self.corners),
            "label": self.label,
            "probability": round(self.probability, 6),
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
            "near_uniform": self.near_uniform,
        }


def predict(
    model: ExpressionModel, card: ModelCard, faces: Sequence[np.ndarray], flip: bool = False, batch_size: int = 32
) -> np.ndarray:
    """Return the probabilities float32 [N, L] of N faces, uint8 RGB [H, W, 3] of any size.

    flip: mean over a face and its mirror image. Raises ValueError where the network gives no finite number.
    """
    device = next(model.parameters()).device
    found = [np.zeros((0, len(card.classes)), np.float32)]
    for start in range(0, len(faces), batch_size):
        images = torch.stack([to_input(face, card.input) for face in faces[start : start + batch_size]]).to(device)
        found.append(probabilities_of(model, images, card.multi_label, flip).cpu().numpy())
    probabilities = np.concatenate(found)
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"the network ({card.model.arch}, {card.epoch} epochs) gives NaN instead of probabilities; its training "
            "went wrong, so take another checkpoint"
        )
    return probabilities


@torch.inference_mode()
def probabilities_of(model: ExpressionModel, images: Tensor, multi_label: bool, flip: bool) -> Tensor:
    """Return probabilities float32 [B, L] of images [B, C, S, S]; with `flip` their mean with the mirror images'."""
    views = [images, images.flip(-1)] if flip else [images]
    logits = [model(view).float() for view in views]
    return torch.stack([each.sigmoid() if multi_label else each.softmax(dim=1) for each in logits]).mean(dim=0)


def name_expressions(
    probabilities: np.ndarray, card: ModelCard, places: Sequence[Corners], min_margin: float = 0.1
) -> list[FacePrediction]:
    """Return what the probabilities [N, L] of N faces say, with where they are."""
    predictions = []
    for corners, row, flat in zip(places, probabilities, near_uniform(probabilities, card, min_margin), strict=True):
        values = dict(zip(card.classes, row.tolist(), strict=True))
        label = max(values, key=values.__getitem__)
        probability = values[label]
        if card.multi_label:
            seen = [name for name in sorted(values, key=values.__getitem__, reverse=True) if values[name] >= SEEN]
            label = ", ".join(seen) or NONE
        predictions.append(FacePrediction(corners, label, probability, values, bool(flat)))
    return predictions


def near_uniform(probabilities: np.ndarray, card: ModelCard, min_margin: float) -> np.ndarray:
    """Return for each row of [N, L] whether hardly any class stands out.

    The highest probability is less than `min_margin` above one in the number of classes; where classes are
    independent, all are less than that from one half.
    """
    if card.multi_label:
        return np.abs(probabilities - 0.5).max(axis=1) < min_margin
    classes = probabilities.shape[1]
    return (probabilities.max(axis=1) < 1 / classes + min_margin) & (classes > 1)


def uniform_warning(checkpoint: object, names: Sequence[str], faces: int, card: ModelCard) -> str | None:
    """Return one sentence on the pictures whose faces are near uniform (a name for each face), None without any."""
    if not names:
        return None
    first = list(dict.fromkeys(names))
    shown = ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
    even = "0.5" if card.multi_label else f"1/{len(card.classes)}"
    return (
        f"{len(names)} of {faces} faces have about the same probability ({even}) for every class, in {shown}: "
        f"{checkpoint} may be untrained or broken, or these are no faces such as it was trained on"
    )
