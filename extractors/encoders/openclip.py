"""Pictures and sentences by the two towers of CLIP-like models through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from affect.core.weights import source_hash
from extractors.encoders.picture_input import PictureInput
from extractors.encoders.prepare import PictureShape, as_it_is
from extractors.encoders.pretrained import PretrainedEncoder, WeightsError


class _OpenClipEncoder(PretrainedEncoder):
    """A model of open_clip: a folder in its own format, a pair such as `ViT-B-32/openai`, or a hub id.

    Raises WeightsError for anything else.
    """

    libraries = (torch, open_clip)

    def __init__(self, name: str, source: str, device: str, precision: str | None) -> None:
        super().__init__(name, source, device, precision)
        self._model_name, options = _locate(name, source)
        model = self._load(
            lambda: open_clip.create_model(self._model_name, device=device, require_pretrained=True, **options)
        )
        self._model = model.eval().to(self._dtype)
        self._weights = _hash(source, options)


class OpenClipVisionEncoder(_OpenClipEncoder):
    """Image features, not normalised: [T, 512] for open_clip:ViT-B-32/openai."""

    family = "open_clip_vision"

    def __init__(self, name: str, source: str, device: str, precision: str | None) -> None:
        super().__init__(name, source, device, precision)
        self._input = self._use(lambda: _picture_input(PreprocessCfg(**self._model.visual.preprocess_cfg), name))
        self.prepare = self._input.prepare
        self._try_out(self._input.example(), self._weights)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        return self._provenance("image projection", "the model's own (CLIP: class token)", str(self._input))

    def _encode(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = self._input.pixels(frames, self._device, self._dtype)
        return self._model.encode_image(pixels, normalize=False)


class OpenClipTextEncoder(_OpenClipEncoder):
    """Text features, rows of length 1: [N, 512] for CLIP_VITB32; texts are cut at the model's length, 77 tokens."""

    family = "open_clip_text"
    rows_at_once = 256
    prepare = staticmethod(as_it_is)

    def __init__(self, name: str, source: str, device: str, precision: str | None) -> None:
        super().__init__(name, source, device, precision)
        self._tokenize = self._load(lambda: open_clip.get_tokenizer(self._model_name))
        self._try_out("", self._weights)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        pooling = "the model's own (CLIP: end-of-text token), then length 1"
        return self._provenance("text projection", pooling, f"{self._tokenize.context_length} tokens")

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        features = self._model.encode_text(self._tokenize(list(texts)).to(self._device), normalize=False)
        return torch.nn.functional.normalize(features.float(), dim=1)


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


def _picture_input(settings: PreprocessCfg, name: str) -> PictureInput:
    """Return the way of pictures into a model with these settings: resizing, cutting, values 0 to 1, normalising."""
    transform = image_transform_v2(settings, is_train=False)
    shape_only = transform.transforms[:-2]  # the last two make a tensor and normalise it

    def own_shape(frames: np.ndarray) -> np.ndarray:
        pictures = [Image.fromarray(frame) for frame in frames]
        for step in shape_only:
            pictures = [step(picture) for picture in pictures]
        return np.stack([np.asarray(picture) for picture in pictures])

    def own_pixels(frames: np.ndarray) -> np.ndarray:
        return np.stack([transform(Image.fromarray(frame)).numpy() for frame in frames])

    height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    squash = settings.resize_mode == "squash"
    shape = PictureShape(
        size=(height, width) if squash else height,
        cut=None if squash else (height, width),
        resample=Image.Resampling.BILINEAR if settings.interpolation == "bilinear" else Image.Resampling.BICUBIC,
        half_pixels="even",
    )
    return PictureInput(shape, own_shape, own_pixels, 1 / 255, settings.mean, settings.std, name)
