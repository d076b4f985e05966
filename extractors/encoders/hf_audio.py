"""Sound by the wav2vec2-like models of transformers: HuBERT, WavLM, data2vec and others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoFeatureExtractor, PreTrainedModel, Wav2Vec2FeatureExtractor

from affect.core.weights import source_hash
from extractors.encoders.loading import WeightsError, load_model, load_pretrained
from extractors.encoders.prepare import as_it_is, level_together
from extractors.encoders.pretrained import PretrainedEncoder
from extractors.media.audio import SAMPLE_RATE

_LAYERS = 4


class HfAudioEncoder(PretrainedEncoder):
    """Mean of the last four hidden layers, then mean over time: [C, 1024] for HUBERT_LARGE and WAVLM_LARGE.

    Models that take the wave itself: HuBERT (Hsu et al., IEEE/ACM TASLP 2021), WavLM (Chen et al.,
    IEEE JSTSP 2022), data2vec (Baevski et al., ICML 2022), wav2vec 2.0 and their like. Where a model
    wants its input normalised, the clips of one item are normalised together, as in the published
    features: a quiet clip stays quieter than a loud one. Raises WeightsError for weights that are not
    there, of another kind, or of another type than `model_type`.
    """

    family = "hf_audio"
    rows_at_once = 32
    libraries = (torch, transformers)

    def __init__(self, name: str, source: str, device: str = "cpu", model_type: str | None = None) -> None:
        super().__init__(name, source, device)
        self._model = load_model(name, source, device, "sound waves", _takes_waves, model_type)
        self.prepare = level_together if _wants_level(name, source) else as_it_is
        self._try_out(np.zeros(SAMPLE_RATE, np.float32), source_hash(source))

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        level = "mean 0 and variance 1 over all clips" if self.prepare is level_together else "as it is"
        layer = f"mean of the last {_LAYERS} hidden layers"
        made = self._provenance(layer, "mean over time", f"{SAMPLE_RATE} Hz, {level}")
        return {**made, "model": self._model.config.model_type}

    def _batches(self, rows: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        for _, of_one_length in itertools.groupby(rows, key=len):
            yield from super()._batches(list(of_one_length))

    def _encode(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        waves = torch.from_numpy(np.stack(clips)).to(self._device, self._dtype)
        output = self._model(waves, output_hidden_states=True)
        # the last layer counts after its norm: transformers 4 stored it so, 5 stores it before
        layers = (*output.hidden_states[-_LAYERS:-1], output.last_hidden_state)
        return torch.stack(layers).float().mean(dim=0).mean(dim=1)


def _takes_waves(model_class: type[PreTrainedModel]) -> bool:
    return model_class.main_input_name == "input_values"


def _wants_level(name: str, source: str) -> bool:
    """Whether a model's sound is normalised; raises WeightsError where other things happen to it."""
    extractor = load_pretrained(
        lambda: AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False), name, source
    )
    if not isinstance(extractor, Wav2Vec2FeatureExtractor) or extractor.sampling_rate != SAMPLE_RATE:
        raise WeightsError(
            f"encoder {name}: {source!r} takes its sound through {type(extractor).__name__} at "
            f"{extractor.sampling_rate} Hz; expected a model of waves at {SAMPLE_RATE} Hz with a "
            "Wav2Vec2FeatureExtractor, so use another model"
        )
    return bool(extractor.do_normalize)
