"""Any network of the timm library, with a new classifier for expressions."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from affect.core.config import ConfigError
from affect.core.weights import why_offline
from affect.expressions.config import ImageModelConfig
from affect.expressions.models.base import ExpressionModel


class TimmBackbone(ExpressionModel):
    """A timm network without its own classifier, and a linear one after it: [B, 3, S, S] -> [B, L].

    Raises ConfigError where timm does not know the name, an option or the size of the pictures.
    """

    def __init__(self, config: ImageModelConfig, num_classes: int) -> None:
        super().__init__()
        self.net = _create(config)
        self.recompute = config.grad_checkpointing
        self.feature_dim = _feature_dim(self.net, config)
        self.head = nn.Linear(self.feature_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        try:
            self.train()
        except (AssertionError, AttributeError, NotImplementedError):
            raise ConfigError(
                f"model.grad_checkpointing: timm's {config.backbone} has none; leave the option out"
            ) from None

    @property
    def cam_layer(self) -> nn.Module:
        """The last layer with places that the classifier depends on."""
        blocks = getattr(self.net, "blocks", None)
        if hasattr(self.net, "num_prefix_tokens") and blocks is not None and hasattr(blocks[-1], "norm1"):
            return blocks[-1].norm1  # the last block's patches do not reach a classifier that reads the class token
        stages = getattr(self.net, "feature_info", None)
        if stages:
            return self.net.get_submodule(stages[-1]["module"])
        return [module for module in self.net.modules() if isinstance(module, nn.Conv2d)][-1]

    def as_map(self, output: Tensor) -> Tensor:
        """Return patches among tokens [B, N, C], or a map whose channels are last, as a map [B, C, h, w]."""
        if output.ndim == 3:
            patches = output[:, getattr(self.net, "num_prefix_tokens", 0) :].transpose(1, 2)
            return patches.unflatten(2, (round(patches.shape[2] ** 0.5), -1))
        channels_last = output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch between training and use; activations are computed anew in training only."""
        super().train(mode)
        if self.recompute:
            self.net.set_grad_checkpointing(mode)
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled vector before the classifier: [B, 3, S, S] -> [B, feature_dim]."""
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)


def _create(config: ImageModelConfig) -> nn.Module:
    """Return the network of a configuration with no classifier."""
    name = config.backbone
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(
            f"model.backbone {name}: timm has no network of that name"
            + (f"; near it are {', '.join(near)}" if near else "")
        )
    options: dict[str, Any] = {
        "model.attn_drop": ("attn_drop_rate", config.attn_drop or None),
        "model.proj_drop": ("proj_drop_rate", config.proj_drop or None),
        "model.drop_path": ("drop_path_rate", config.drop_path),
    }
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size and known.input_size[-1] != config.input_size:
        options["model.img_size"] = ("img_size", config.input_size)
    offline = why_offline(f"timm/{name}") if config.pretrained else ""
    given = {key: value for key, value in options.items() if value[1] is not None}
    try:
        return timm.create_model(name, pretrained=config.pretrained, num_classes=0, **dict(given.values()))
    except TypeError as error:
        raise ConfigError(f"model.backbone {name} does not take one of {', '.join(given)} ({error})") from None
    except (OSError, RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        first = f"{offline}; {first}" if offline else first
        what = "its pretrained weights could not be had" if config.pretrained else "could not be built"
        raise ConfigError(
            f"model.backbone {name}: {what} ({first}); "
            "set model.weights to a file of them or model.pretrained False, and check model.img_size"
        ) from None


def _feature_dim(net: nn.Module, config: ImageModelConfig) -> int:
    """Return the width of the vector that the network makes of an empty picture."""
    size = config.input_size
    net.eval()
    try:
        with torch.no_grad():
            vector = net.forward_head(net.forward_features(torch.zeros(1, 3, size, size)), pre_logits=True)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.img_size {size}: {config.backbone} cannot read pictures of {size}x{size} "
            f"({str(error).splitlines()[0]})"
        ) from None
    if vector.ndim != 2:
        raise ConfigError(
            f"model.backbone {config.backbone}: expected one vector a picture, found {list(vector.shape)}"
        )
    return vector.shape[1]
