"""Sentences by the text models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from affect.core.weights import source_hash
from extractors.encoders.loading import WeightsError, load_model, load_pretrained
from extractors.encoders.prepare import as_it_is
from extractors.encoders.pretrained import PretrainedEncoder

_LONGEST = 512


class HfTextEncoder(PretrainedEncoder):
    """One row of length 1 a text, [N, D].

    Models of pictures and text give their `get_text_features`: CLIP's projection of the end-of-text
    token, SigLIP's head on the last position. All others (BERT-like models, decoders, the encoder of
    encoder-decoders) give the mean of the last layer over the tokens. Raises WeightsError for
    weights that are not there or of another kind.
    """

    family = "hf_text"
    rows_at_once = 256
    libraries = (torch, transformers)
    prepare = staticmethod(as_it_is)

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        super().__init__(name, source, device)
        model = load_model(name, source, device, "text", _takes_text)
        self._model = model.get_encoder() if model.config.is_encoder_decoder else model
        self._tokenizer = _load_tokenizer(name, source)
        self._length = min(
            self._tokenizer.model_max_length,
            getattr(model.config.get_text_config(), "max_position_embeddings", _LONGEST),
            _LONGEST,
        )
        # SigLIP reads its last position, and was trained on padded texts without a mask
        self._padded = model.config.model_type.startswith("siglip")
        self._empty = "" if self._tokenizer("")["input_ids"] else self._tokenizer.pad_token
        self._try_out("", source_hash(source))

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        projects = hasattr(self._model, "get_text_features") or hasattr(self._model, "text_projection")
        layer, pooling = ("text projection", "the model's own") if projects else ("last layer", "mean over tokens")
        preprocessing = f"{self._length} tokens{', padded' if self._padded else ' at most'}"
        made = self._provenance(layer, f"{pooling}, then length 1", preprocessing)
        return {**made, "model": self._model.config.model_type}

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            [text or self._empty for text in texts],
            padding="max_length" if self._padded else True,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(self._device)
        given = {"input_ids": tokens["input_ids"]}
        if not self._padded:
            given["attention_mask"] = tokens["attention_mask"]
        return torch.nn.functional.normalize(self._forward(given), dim=1)

    def _forward(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return features float32 [N, D] of any length."""
        if hasattr(self._model, "get_text_features"):
            return self._model.get_text_features(**tokens).pooler_output.float()
        output = self._model(**tokens)
        if output.get("text_embeds") is not None:
            return output.text_embeds.float()
        # the sum is as good as the mean, since only its direction is kept
        return (output.last_hidden_state.float() * tokens["attention_mask"][:, :, None]).sum(dim=1)


def _takes_text(model_class: type[PreTrainedModel]) -> bool:
    # a model that writes text about pictures has no get_text_features
    return model_class.main_input_name == "input_ids" and (
        hasattr(model_class, "get_text_features") or not hasattr(model_class, "get_image_features")
    )


def _load_tokenizer(name: str, source: str) -> PreTrainedTokenizerBase:
    tokenizer = load_pretrained(
        # what stands before padding on the right is computed as if it stood alone
        lambda: AutoTokenizer.from_pretrained(source, padding_side="right", trust_remote_code=False),
        name,
        source,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise WeightsError(
            f"encoder {name}: the tokenizer at {source!r} has neither a padding nor an end token; expected one, so "
            "add pad_token to its tokenizer_config.json"
        )
    return tokenizer
