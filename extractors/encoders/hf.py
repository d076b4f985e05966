"""Pictures, sound and sentences by the models of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Wav2Vec2FeatureExtractor,
)

from affect.core.weights import source_hash
from extractors.encoders.picture_input import PictureInput
from extractors.encoders.prepare import PictureShape, as_it_is, level_together
from extractors.encoders.pretrained import PretrainedEncoder, WeightsError
from extractors.media.decode import SAMPLE_RATE

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_LAYER_AND_POOLING = {
    "clip": ("image projection", "class token"),
    "siglip": ("last norm", "attention"),
    "dinov2": ("last norm", "class token"),
}
_LAYERS = 4  # of sound, from the last back
_LONGEST = 512  # tokens


class _HfEncoder(PretrainedEncoder):
    """A model of transformers of which a subclass says what it `takes`, and which class of models does (`_fits`)."""

    libraries = (torch, transformers)
    takes: str

    def __init__(self, name: str, source: str, device: str, precision: str | None, model_type: str | None) -> None:
        super().__init__(name, source, device, precision)
        config = self._load(lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))
        found = f"encoder {name}: {source!r} holds a model of type {config.model_type!r}"
        if model_type and config.model_type != model_type:
            raise WeightsError(f"{found}; expected {model_type!r}, so point to another folder")
        model_class = _model_class(config)
        if model_class is None or not self._fits(model_class):
            found += f", which takes {model_class.main_input_name}" if model_class else ""
            raise WeightsError(f"{found}; expected one that takes {self.takes}, so point to another folder")
        self._model = self._whole_model(model_class).eval().to(device)

    @staticmethod
    def _fits(model_class: type[PreTrainedModel]) -> bool:
        raise NotImplementedError

    def _whole_model(self, model_class: type[PreTrainedModel]) -> PreTrainedModel:
        """Return the model; raises WeightsError where weights are missing. A pooler that lacks some is left out."""
        with _no_loading_report():
            model, info = self._load(
                lambda: model_class.from_pretrained(self._source, dtype=self._dtype, output_loading_info=True)
            )
        # the embedding of masked time steps is for training only, and some checkpoints leave it out
        missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
        if missing and all(key.startswith("pooler.") for key in missing):
            model.pooler = None  # checkpoints of classifiers have none
        elif missing:
            raise WeightsError(
                f"encoder {self.name}: {self._source!r} lacks {len(missing)} weights of {model_class.__name__} (first: "
                f"{missing[0]}); expected a whole checkpoint, so download it again"
            )
        return model

    def _provenance(self, layer: str, pooling: str, preprocessing: str) -> dict[str, Any]:
        return {**super()._provenance(layer, pooling, preprocessing), "model": self._model.config.model_type}


class HfVisionEncoder(_HfEncoder):
    """One row a picture, not normalised: 768 wide for CLIP_VIT_LARGE, 1152 for SIGLIP_SO, 1024 for DINO2_LARGE.

    Models of pictures and text give their `get_image_features`: CLIP's projection (Radford et al.,
    ICML 2021), SigLIP's attention pooling (Zhai et al., ICCV 2023). Others give their pooler's output
    (DINOv2, Oquab et al., TMLR 2024: the class token after the last norm); where they have none or
    the checkpoint lacks it, the class token, or else the mean over patches. Raises WeightsError for
    weights that are not there, of another kind, or of another type than `model_type`.
    """

    family = "hf_vision"
    takes = "pictures"

    def __init__(self, name: str, source: str, device: str, precision: str | None, model_type: str | None) -> None:
        super().__init__(name, source, device, precision, model_type)
        self._input = self._picture_input()
        self.prepare = self._input.prepare
        self._class_token = any(key.endswith(_CLASS_TOKENS) for key, _ in self._model.named_parameters())
        self._try_out(self._input.example(), source_hash(source))

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        known = _LAYER_AND_POOLING.get(self._model.config.model_type)
        layer, pooling = known or ("last layer", self._pooling)
        return self._provenance(layer, pooling, str(self._input))

    def _encode(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        features, self._pooling = self._forward(frames)
        return features

    def _forward(self, frames: Sequence[np.ndarray]) -> tuple[torch.Tensor, str]:
        """Return features [N, D] and how they are pooled."""
        pixels = self._input.pixels(frames, self._device, self._dtype)
        if hasattr(self._model, "get_image_features"):
            return self._model.get_image_features(pixel_values=pixels).pooler_output, "the model's own"
        output = self._model(pixel_values=pixels)
        if output.get("image_embeds") is not None:
            return output.image_embeds, "projection"
        if output.get("pooler_output") is not None:
            return output.pooler_output.flatten(1), "pooler"
        hidden = output.last_hidden_state
        if self._class_token:
            return hidden[:, 0], "class token"
        return (hidden.flatten(2).mean(dim=2) if hidden.ndim == 4 else hidden.mean(dim=1)), "mean over patches"

    @staticmethod
    def _fits(model_class: type[PreTrainedModel]) -> bool:
        # a model that writes text about pictures has no get_text_features
        return model_class.main_input_name == "pixel_values" or (
            hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features")
        )

    def _picture_input(self) -> PictureInput:
        # Pillow's resizing, as in the published features; torchvision's differs a little
        processor = self._load(
            lambda: AutoImageProcessor.from_pretrained(self._source, backend="pil", trust_remote_code=False)
        )

        def run(frames: np.ndarray, **options: Any) -> np.ndarray:
            # the layout is said outright, since a picture 3 pixels high could be taken for channels first
            out = processor(images=list(frames), return_tensors="np", input_data_format="channels_last", **options)
            return np.asarray(out["pixel_values"])

        def own_shape(frames: np.ndarray) -> np.ndarray:
            return np.moveaxis(run(frames, do_rescale=False, do_normalize=False), 1, -1)

        settings = processor.to_dict()
        return self._use(
            lambda: PictureInput(
                _shape(settings),
                own_shape,
                run,
                scale=settings["rescale_factor"] if settings.get("do_rescale") else 1.0,
                mean=settings["image_mean"] if settings.get("do_normalize") else [0.0] * 3,
                std=settings["image_std"] if settings.get("do_normalize") else [1.0] * 3,
                name=self.name,
            )
        )


class HfAudioEncoder(_HfEncoder):
    """Mean of the last four hidden layers, then mean over time: [C, 1024] for HUBERT_LARGE and WAVLM_LARGE.

    Models that take the wave itself: HuBERT (Hsu et al., IEEE/ACM TASLP 2021), WavLM (Chen et al.,
    IEEE JSTSP 2022), data2vec (Baevski et al., ICML 2022), wav2vec 2.0 and their like. Where a model
    wants its input normalised, the clips of one item are normalised together, as in the published
    features: a quiet clip stays quieter than a loud one. Raises WeightsError for weights that are not
    there, of another kind, or of another type than `model_type`.
    """

    family = "hf_audio"
    takes = "sound waves"
    rows_at_once = 32

    def __init__(self, name: str, source: str, device: str, precision: str | None, model_type: str | None) -> None:
        super().__init__(name, source, device, precision, model_type)
        self.prepare = level_together if self._wants_level() else as_it_is
        self._try_out(np.zeros(SAMPLE_RATE, np.float32), source_hash(source))

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        level = "mean 0 and variance 1 over all clips" if self.prepare is level_together else "as it is"
        layer = f"mean of the last {_LAYERS} hidden layers"
        return self._provenance(layer, "mean over time", f"{SAMPLE_RATE} Hz, {level}")

    def _batches(self, rows: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        for _, of_one_length in itertools.groupby(rows, key=len):
            yield from super()._batches(list(of_one_length))

    def _encode(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        waves = torch.from_numpy(np.stack(clips)).to(self._device, self._dtype)
        output = self._model(waves, output_hidden_states=True)
        # the last layer counts after its norm: transformers 4 stored it so, 5 stores it before
        layers = (*output.hidden_states[-_LAYERS:-1], output.last_hidden_state)
        return torch.stack(layers).float().mean(dim=0).mean(dim=1)

    @staticmethod
    def _fits(model_class: type[PreTrainedModel]) -> bool:
        return model_class.main_input_name == "input_values"

    def _wants_level(self) -> bool:
        """Whether a model's sound is normalised; raises WeightsError where other things happen to it."""
        extractor = self._load(lambda: AutoFeatureExtractor.from_pretrained(self._source, trust_remote_code=False))
        if not isinstance(extractor, Wav2Vec2FeatureExtractor) or extractor.sampling_rate != SAMPLE_RATE:
            raise WeightsError(
                f"encoder {self.name}: {self._source!r} takes its sound through {type(extractor).__name__} at "
                f"{extractor.sampling_rate} Hz; expected a model of waves at {SAMPLE_RATE} Hz with a "
                "Wav2Vec2FeatureExtractor, so use another model"
            )
        return bool(extractor.do_normalize)


class HfTextEncoder(_HfEncoder):
    """One row of length 1 a text, [N, D].

    Models of pictures and text give their `get_text_features`: CLIP's projection of the end-of-text
    token, SigLIP's head on the last position. All others (BERT-like models, decoders, the encoder of
    encoder-decoders) give the mean of the last layer over the tokens. Raises WeightsError for
    weights that are not there or of another kind.
    """

    family = "hf_text"
    takes = "text"
    rows_at_once = 256
    prepare = staticmethod(as_it_is)

    def __init__(self, name: str, source: str, device: str, precision: str | None, model_type: str | None) -> None:
        super().__init__(name, source, device, precision, model_type)
        model = self._model
        self._model = model.get_encoder() if model.config.is_encoder_decoder else model
        self._tokenizer = self._load_tokenizer()
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
        return self._provenance(layer, f"{pooling}, then length 1", preprocessing)

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

    @staticmethod
    def _fits(model_class: type[PreTrainedModel]) -> bool:
        # a model that writes text about pictures has no get_text_features
        return model_class.main_input_name == "input_ids" and (
            hasattr(model_class, "get_text_features") or not hasattr(model_class, "get_image_features")
        )

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = self._load(
            # what stands before padding on the right is computed as if it stood alone
            lambda: AutoTokenizer.from_pretrained(self._source, padding_side="right", trust_remote_code=False)
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise WeightsError(
                f"encoder {self.name}: the tokenizer at {self._source!r} has neither a padding nor an end token; "
                "expected one, so add pad_token to its tokenizer_config.json"
            )
        return tokenizer


def _model_class(config: Any) -> type[PreTrainedModel] | None:
    """Return the bare model of a configuration, with its projection where a tower was saved alone with it."""
    saved_as = (config.architectures or [""])[0]
    if saved_as.endswith("ModelWithProjection"):
        return getattr(transformers, saved_as, None)
    found = MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


@contextmanager
def _no_loading_report() -> Iterator[None]:
    """Keep transformers from advising to train the weights that are judged here, and used only if they are whole."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _shape(settings: dict[str, Any]) -> PictureShape:
    """Return what an image processor's settings say about size, as far as `PictureShape` can say it."""
    size = settings.get("size") or {} if settings.get("do_resize") else {}
    cut = settings.get("crop_size") or {} if settings.get("do_center_crop") else {}
    edge, pair = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    return PictureShape(
        size=edge or (pair if all(pair) else None),
        cut=(cut["height"], cut["width"]) if cut else None,
        resample=settings.get("resample", PictureShape.resample),
    )
