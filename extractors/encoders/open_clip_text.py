"""Sentences by the text tower of CLIP through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from extractors.encoders.loading import WeightsError, chunks, load_pretrained, source_hash, split_rows

_TEXTS_AT_ONCE = 256


class OpenClipTextEncoder:
    """Text features of CLIP, rows of length 1: [N, 512] for CLIP_VITB32; texts are cut at 77 tokens.

    `source` is a folder in open_clip's own format, a pair such as `ViT-B-32/openai`, or a hub
    id. Raises WeightsError for anything else.
    """

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        self.name = name
        self._device = device
        model_name, options = _locate(name, source)
        self._model = load_pretrained(
            lambda: open_clip.create_model(model_name, device=device, require_pretrained=True, **options), name, source
        ).eval()
        self._tokenize = load_pretrained(lambda: open_clip.get_tokenizer(model_name), name, source)
        self._hash = _hash(source, options)
        self.dim: int = self._encode([""]).shape[1]

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        return {
            "family": "open_clip_text",
            "weights": self._hash,
            "layer": "text projection",
            "pooling": "end-of-text token, then length 1",
            "preprocessing": f"{self._tokenize.context_length} tokens",
            "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
        }

    def __call__(self, items: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return [N, D] for each list of N texts."""
        texts = [text for item in items for text in item]
        rows = [np.zeros((0, self.dim), np.float32), *map(self._encode, chunks(texts, _TEXTS_AT_ONCE))]
        return split_rows(np.concatenate(rows), items)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        tokens = self._tokenize(list(texts)).to(self._device)
        return self._model.encode_text(tokens, normalize=True).float().cpu().numpy()


def _locate(name: str, source: str) -> tuple[str, dict[str, Any]]:
    """Return open_clip's own name of the source and the options it takes."""
    if Path(source).is_dir():
        if not (Path(source) / "open_clip_config.json").is_file():
            raise WeightsError(
                f"encoder {name}: {source} has no open_clip_config.json; expected a folder in open_clip's own format, "
                "so download the open_clip version of the weights"
            )
        return f"local-dir:{source}", {}
    architecture, _, tag = source.partition("/")
    known = open_clip.get_pretrained_cfg(architecture, tag)
    if known:
        # open_clip only warns where the activation is not the one that the weights were trained with
        return architecture, {"pretrained": tag, "force_quick_gelu": bool(known.get("quick_gelu"))}
    return f"hf-hub:{source}", {}


def _hash(source: str, options: dict[str, Any]) -> str:
    if "pretrained" not in options:
        return source_hash(source)
    architecture, _, tag = source.partition("/")
    return source_hash(open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "").rstrip("/"))
