"""Sound by HuBERT (Hsu et al., IEEE/ACM TASLP 2021) through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from extractors.audio import SAMPLE_RATE
from extractors.encoders.loading import chunks, load_model, load_pretrained, source_hash, split_rows

_CLIPS_AT_ONCE = 32
_LAYERS = 4


class HubertEncoder:
    """Mean of HuBERT's last four hidden layers, then mean over time: [C, 1024] for HUBERT_LARGE.

    The clips of one item are normalised together, as in the published features: a quiet clip
    stays quieter than a loud one. Raises WeightsError for weights that are not there or not HuBERT's.
    """

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        self.name = name
        self._device = device
        self._model = load_model(HubertModel, name, source, device)
        self._processor = load_pretrained(lambda: Wav2Vec2FeatureExtractor.from_pretrained(source), name, source)
        self._hash = source_hash(source)
        self.dim: int = self._model.config.hidden_size

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        return {
            "family": "hf_audio",
            "weights": self._hash,
            "layer": f"mean of the last {_LAYERS} hidden layers",
            "pooling": "mean over time",
            "preprocessing": f"{SAMPLE_RATE} Hz, "
            + ("mean 0 and variance 1 over all clips" if self._processor.do_normalize else "as it is"),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    @torch.inference_mode()
    def __call__(self, items: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Return [C, D] for each item of sound clips float32 [C, N] at 16 kHz; [0, D] for None, no sound."""
        clips = [clip for item in items if item is not None and len(item) for clip in self._normalise(item)]
        rows = [np.zeros((0, self.dim), np.float32)]
        for chunk in chunks(clips, _CLIPS_AT_ONCE):
            waves = torch.from_numpy(np.stack(chunk)).to(self._device)
            output = self._model(waves, output_hidden_states=True)
            # the last layer counts after its norm: transformers 4 stored it so, 5 stores it before
            layers = (*output.hidden_states[-_LAYERS:-1], output.last_hidden_state)
            rows.append(torch.stack(layers).mean(dim=0).mean(dim=1).cpu().numpy())
        return split_rows(np.concatenate(rows), items)

    def _normalise(self, clips: np.ndarray) -> np.ndarray:
        """Pass the clips [C, N] through the feature extractor as one example."""
        joined = self._processor(clips.reshape(-1), sampling_rate=SAMPLE_RATE, return_tensors="np")
        return joined["input_values"].reshape(clips.shape).astype(np.float32, copy=False)
