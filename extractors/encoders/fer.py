"""Pictures by a network of the image track: what it sees in a face before it names the expression."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from affect.core.weights import weights_hash
from affect.expressions.models import load_model
from affect.expressions.network_file import find_model
from extractors.encoders.prepare import NetworkInput
from extractors.encoders.pretrained import PretrainedEncoder, WeightsError

logger = logging.getLogger(__name__)


class FerEncoder(PretrainedEncoder):
    """The vector before the classifier, one row a picture: [T, 768] for POSTER V2, [T, 512] for IR50 + ViT.

    source: a file that train.py wrote, or a run's folder, whose best network counts. Raises WeightsError
    where there is none, or one that is cut off or of another format.
    """

    family = "fer"

    def __init__(self, name: str, source: str, device: str, precision: str | None) -> None:
        super().__init__(name, source, device, precision)
        try:
            self._model, self._card = load_model(source, device)
        except ValueError as error:
            raise WeightsError(f"encoder {name}: {error}") from error
        self.prepare = NetworkInput(self._card.input)
        noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
        self._try_out(self.prepare(noise)[0], weights_hash(find_model(source)))
        if self._card.aligned:
            logger.warning("encoder %s learned from faces turned upright; those of clips are cut out as they are", name)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        card = self._card
        return {
            **self._provenance("before the classifier", "the model's own", str(self.prepare)),
            "model": card.model.arch,
            "classes": list(card.classes),
            "trained_on_upright_faces": card.aligned,
            "versions": {name: version(name) for name in ("torch", "timm", "affect")},
        }

    def _encode(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        images = torch.from_numpy(np.stack(pictures)).to(self._device)
        # as in training: the convolutions in fewer bits, norms and softmax in float32
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._model.features(images)
