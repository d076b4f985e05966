"""Sentences by the text tower of CLIP-like models through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch

from extractors.encoders.batches import chunks, encode_batches, feature_width, split_rows
from extractors.encoders.loading import load_pretrained, precision
from extractors.encoders.open_clip_loading import load_open_clip
from extractors.encoders.prepare import as_it_is

_TEXTS_AT_ONCE = 256


class OpenClipTextEncoder:
    """Text features, rows of length 1: [N, 512] for CLIP_VITB32; texts are cut at the model's length, 77 tokens.

    Raises WeightsError where `load_open_clip` finds no model.
    """

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        self.name = name
        self.prepare = as_it_is
        self._device, self._dtype = device, precision(device)
        self._model, model_name, self._hash = load_open_clip(name, source, device)
        self._tokenize = load_pretrained(lambda: open_clip.get_tokenizer(model_name), name, source)
        self.dim = feature_width(self._encode, "", name, source)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        return {
            "family": "open_clip_text",
            "weights": self._hash,
            "layer": "text projection",
            "pooling": "the model's own (CLIP: end-of-text token), then length 1",
            "preprocessing": f"{self._tokenize.context_length} tokens",
            "precision": str(self._dtype).removeprefix("torch."),
            "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
        }

    def __call__(self, items: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return [N, D] for each list of N texts."""
        texts = [text for item in items for text in item]
        return split_rows(encode_batches(chunks(texts, _TEXTS_AT_ONCE), self._encode, self.dim), items)

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        features = self._model.encode_text(self._tokenize(list(texts)).to(self._device), normalize=False)
        return torch.nn.functional.normalize(features.float(), dim=1)
