"""Pictures by the picture tower of CLIP-like models through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from extractors.encoders.batches import chunks, encode_batches, feature_width, split_rows
from extractors.encoders.loading import precision, try_out
from extractors.encoders.open_clip_loading import load_open_clip
from extractors.encoders.picture_input import PictureInput
from extractors.encoders.pictures import PictureShape

_FRAMES_AT_ONCE = 64


class OpenClipVisionEncoder:
    """Image features, not normalised: [T, 512] for open_clip:ViT-B-32/openai.

    Raises WeightsError where `load_open_clip` finds no model.
    """

    def __init__(self, name: str, source: str, device: str = "cpu") -> None:
        self.name = name
        self._device, self._dtype = device, precision(device)
        self._model, _, self._hash = load_open_clip(name, source, device)
        self._input = try_out(
            lambda: _picture_input(PreprocessCfg(**self._model.visual.preprocess_cfg), name), name, source
        )
        self.prepare = self._input.prepare
        self.dim = feature_width(self._encode, self._input.example(), name, source)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        return {
            "family": "open_clip_vision",
            "weights": self._hash,
            "layer": "image projection",
            "pooling": "the model's own (CLIP: class token)",
            "preprocessing": str(self._input),
            "precision": str(self._dtype).removeprefix("torch."),
            "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
        }

    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return [T, D] for each item of prepared RGB frames uint8 [T, H, W, 3]."""
        frames = [frame for item in items for frame in item]
        return split_rows(encode_batches(chunks(frames, _FRAMES_AT_ONCE), self._encode, self.dim), items)

    def _encode(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = self._input.pixels(frames, self._device, self._dtype)
        return self._model.encode_image(pixels, normalize=False)


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
