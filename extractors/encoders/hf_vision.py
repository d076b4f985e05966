"""Pictures by the vision models of transformers: CLIP, SigLIP, DINOv2 and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, PreTrainedModel

from affect.core.weights import source_hash
from extractors.encoders.loading import load_model, load_pretrained, try_out
from extractors.encoders.picture_input import PictureInput
from extractors.encoders.prepare import PictureShape
from extractors.encoders.pretrained import PretrainedEncoder

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_LAYER_AND_POOLING = {
    "clip": ("image projection", "class token"),
    "siglip": ("last norm", "attention"),
    "dinov2": ("last norm", "class token"),
}


class HfVisionEncoder(PretrainedEncoder):
    """One row a picture, not normalised: 768 wide for CLIP_VIT_LARGE, 1152 for SIGLIP_SO, 1024 for DINO2_LARGE.

    Models of pictures and text give their `get_image_features`: CLIP's projection (Radford et al.,
    ICML 2021), SigLIP's attention pooling (Zhai et al., ICCV 2023). Others give their pooler's output
    (DINOv2, Oquab et al., TMLR 2024: the class token after the last norm); where they have none or
    the checkpoint lacks it, the class token, or else the mean over patches. Raises WeightsError for
    weights that are not there, of another kind, or of another type than `model_type`.
    """

    family = "hf_vision"
    libraries = (torch, transformers)

    def __init__(self, name: str, source: str, device: str = "cpu", model_type: str | None = None) -> None:
        super().__init__(name, source, device)
        self._model = load_model(name, source, device, "pictures", _takes_pictures, model_type)
        self._input = _picture_input(name, source)
        self.prepare = self._input.prepare
        self._class_token = any(key.endswith(_CLASS_TOKENS) for key, _ in self._model.named_parameters())
        self._try_out(self._input.example(), source_hash(source))

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        model_type = self._model.config.model_type
        layer, pooling = _LAYER_AND_POOLING.get(model_type, ("last layer", self._pooling))
        return {**self._provenance(layer, pooling, str(self._input)), "model": model_type}

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


def _takes_pictures(model_class: type[PreTrainedModel]) -> bool:
    # a model that writes text about pictures has no get_text_features
    return model_class.main_input_name == "pixel_values" or (
        hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features")
    )


def _picture_input(name: str, source: str) -> PictureInput:
    # Pillow's resizing, as in the published features; torchvision's differs a little
    processor = load_pretrained(
        lambda: AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False), name, source
    )

    def run(frames: np.ndarray, **options: Any) -> np.ndarray:
        # the layout is said outright, since a picture 3 pixels high could be taken for channels first
        out = processor(images=list(frames), return_tensors="np", input_data_format="channels_last", **options)
        return np.asarray(out["pixel_values"])

    def own_shape(frames: np.ndarray) -> np.ndarray:
        return np.moveaxis(run(frames, do_rescale=False, do_normalize=False), 1, -1)

    settings = processor.to_dict()
    return try_out(
        lambda: PictureInput(
            _shape(settings),
            own_shape,
            run,
            scale=settings["rescale_factor"] if settings.get("do_rescale") else 1.0,
            mean=settings["image_mean"] if settings.get("do_normalize") else [0.0] * 3,
            std=settings["image_std"] if settings.get("do_normalize") else [1.0] * 3,
            name=name,
        ),
        name,
        source,
    )


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
