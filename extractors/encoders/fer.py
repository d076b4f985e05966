"""Pictures by a network of the image track: what it sees in a face before it names the expression."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from affect.core.weights import weights_hash
from affect.expressions.models import ExpressionModel, load_model
from affect.expressions.network_file import ModelCard, find_model
from extractors.encoders.batches import chunks, encode_batches, feature_width, split_rows
from extractors.encoders.fer_input import NetworkInput
from extractors.encoders.loading import WeightsError, precision

logger = logging.getLogger(__name__)

_FRAMES_AT_ONCE = 64


class FerEncoder:
    """The vector before the classifier, one row a picture: [T, 768] for POSTER V2, [T, 512] for IR50 + ViT.

    source: a file that train.py wrote, or a run's folder, whose best network counts. Raises WeightsError
    where there is none, or one that is cut off or of another format.
    """

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        self.name = name
        self._device, self._dtype = torch.device(device), precision(device)
        self._model, self._card = _load(name, source, device)
        self.prepare = NetworkInput(self._card.input)
        noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
        self.dim = feature_width(self._encode, self.prepare(noise)[0], name, source)
        self._hash = weights_hash(find_model(source))
        if self._card.aligned:
            logger.warning("encoder %s learned from faces turned upright; those of clips are cut out as they are", name)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        card = self._card
        return {
            "family": "fer",
            "model": card.model.arch,
            "weights": self._hash,
            "layer": "before the classifier",
            "pooling": "the model's own",
            "preprocessing": str(self.prepare),
            "classes": list(card.classes),
            "trained_on_upright_faces": card.aligned,
            "precision": str(self._dtype).removeprefix("torch."),
            "versions": {name: version(name) for name in ("torch", "timm", "affect")},
        }

    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return [T, D] for each item of prepared pictures float32 [T, C, S, S]."""
        pictures = [picture for item in items for picture in item]
        return split_rows(encode_batches(chunks(pictures, _FRAMES_AT_ONCE), self._encode, self.dim), items)

    def _encode(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        images = torch.from_numpy(np.stack(pictures)).to(self._device)
        # as in training: the convolutions in fewer bits, norms and softmax in float32
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._model.features(images)


def _load(name: str, source: str, device: str) -> tuple[ExpressionModel, ModelCard]:
    try:
        return load_model(source, device)
    except ValueError as error:
        raise WeightsError(f"encoder {name}: {error}") from error
