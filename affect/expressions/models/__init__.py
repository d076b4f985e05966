"""Networks that name expressions, behind one interface."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from affect.core.config import ConfigError
from affect.expressions.config import Arch, ImageModelConfig
from affect.expressions.models.backbone import TimmBackbone
from affect.expressions.models.base import ExpressionModel
from affect.expressions.models.cls_vit import Ir50Vit
from affect.expressions.models.compact import Compact
from affect.expressions.models.ir50 import Unit
from affect.expressions.models.poster_v2 import PosterV2
from affect.expressions.models.published import fill, load_weights, require_files
from affect.expressions.network_file import ModelCard, find_model, read_network

__all__ = ["ExpressionModel", "build_model", "check_settings", "for_prediction", "load_model"]

_NETWORKS = {"poster_v2": PosterV2, "ir50_vit": Ir50Vit, "compact": Compact, "timm": TimmBackbone}
_TRANSFORMERS: tuple[Arch, ...] = ("poster_v2", "ir50_vit", "timm")
_READ_BY: dict[str, tuple[Arch, ...]] = {
    "backbone": ("timm",),
    "pretrained": ("timm",),
    "ir50_weights": ("poster_v2", "ir50_vit"),
    "face_weights": ("poster_v2",),
    "width": ("poster_v2", "ir50_vit", "compact"),
    "depth": ("poster_v2", "ir50_vit"),
    "block": ("ir50_vit",),
    "stage": ("ir50_vit",),
    "qk_norm": ("ir50_vit",),
    "attn_drop": _TRANSFORMERS,
    "proj_drop": _TRANSFORMERS,
    "drop_path": _TRANSFORMERS,
    "grad_checkpointing": _TRANSFORMERS,
}
"""Setting -> the architectures that it changes."""


def check_settings(config: ImageModelConfig) -> None:
    """Raise ConfigError for a setting that the architecture does not have, or a file of weights that is not there."""
    fields = ImageModelConfig.model_fields
    idle = [
        f"model.{key}"
        for key, known in _READ_BY.items()
        if config.arch not in known and getattr(config, key) != fields[key].default
    ]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: {config.arch} has nothing of the kind; leave the setting out")
    require_files(config)


def build_model(config: ImageModelConfig, num_classes: int) -> ExpressionModel:
    """Return the network of a configuration with the weights that it names, in its memory layout.

    Raises ConfigError in one sentence: for a setting that the architecture does not have, a size of pictures
    that it cannot read, a network that timm does not know, or a file of weights that is not what it should be.
    """
    check_settings(config)
    model = _NETWORKS[config.arch](config, num_classes)
    load_weights(model, config)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def load_model(path: str | Path, device: str = "cpu") -> tuple[ExpressionModel, ModelCard]:
    """Return the network of a file or run folder, ready to predict, and its card.

    Raises ValueError saying what is wrong with a file that is cut off, of another format or of another shape.
    """
    card, weights = read_network(path)
    bare = {"weights": None, "ir50_weights": None, "face_weights": None, "pretrained": False}
    model = build_model(card.model.model_copy(update=bare), len(card.classes))
    fill(model, weights, find_model(path), f"{card.model.arch} as its header describes it")
    return for_prediction(model, device), card


def for_prediction(model: ExpressionModel, device: str = "cpu") -> ExpressionModel:
    """Return a network on a device as it answers quickest; it cannot be trained further.

    Batch norms that follow a convolution become part of it, in place: the logits change by rounding only, with fewer
    passes over memory; the state dict no longer fits the network that was built.
    """
    for module in list(model.eval().modules()):
        if isinstance(module, (Unit, nn.Sequential)):  # their parts work in the order that they are named in
            for (first, conv), (second, norm) in pairwise(module.named_children()):
                if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:  # timm's own kinds do more than that
                    setattr(module, first, fuse_conv_bn_eval(conv, norm))
                    setattr(module, second, nn.Identity())
    return model.requires_grad_(False).to(device)
