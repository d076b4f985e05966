"""Pictures by the vision tower of CLIP (Radford et al., ICML 2021) through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, CLIPModel

from extractors.encoders.loading import chunks, load_model, load_pretrained, source_hash, split_rows

_FRAMES_AT_ONCE = 64


class ClipVisionEncoder:
    """Image features of CLIP, [T, 768] for CLIP_VIT_LARGE: what `get_image_features` gives, not normalised.

    Raises WeightsError for weights that are not there or not CLIP's.
    """

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        self.name = name
        self._device = device
        self._model = load_model(CLIPModel, name, source, device)
        # Pillow's resizing, as in the published features; torchvision's differs a little
        self._processor = load_pretrained(
            lambda: AutoImageProcessor.from_pretrained(source, backend="pil"), name, source
        )
        self._hash = source_hash(source)
        self.dim: int = self._model.config.projection_dim

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        side = self._model.config.vision_config.image_size
        return {
            "family": "hf_vision",
            "weights": self._hash,
            "layer": "image projection",
            "pooling": "class token",
            "preprocessing": f"bicubic by Pillow, cut to {side} x {side}",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    @torch.inference_mode()
    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return [T, D] for each item of RGB frames uint8 [T, H, W, 3]."""
        frames = [frame for item in items for frame in item]
        rows = [np.zeros((0, self.dim), np.float32)]
        for chunk in chunks(frames, _FRAMES_AT_ONCE):
            # said outright, since a picture 3 pixels high could be taken for channels first
            pixels = self._processor(images=list(chunk), return_tensors="pt", input_data_format="channels_last")
            features = self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device))
            rows.append(features.pooler_output.cpu().numpy())
        return split_rows(np.concatenate(rows), items)
