"""Loading the models of open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch

from affect.core.weights import source_hash
from extractors.encoders.loading import WeightsError, load_pretrained, precision


def load_open_clip(name: str, source: str, device: str) -> tuple[torch.nn.Module, str, str]:
    """Return a model for inference in the device's precision, open_clip's own name of it, and its weights hash.

    `source` is a folder in open_clip's own format, a pair such as `ViT-B-32/openai`, or a hub
    id. Raises WeightsError for anything else.
    """
    model_name, options = _locate(name, source)
    model = load_pretrained(
        lambda: open_clip.create_model(model_name, device=device, require_pretrained=True, **options), name, source
    )
    return model.eval().to(precision(device)), model_name, _hash(source, options)


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
