"""Loading pretrained weights so that a problem is one sentence and never a randomly filled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from affect.weights import weights_hash


class WeightsError(ValueError):
    """Weights that are not there or do not fit the encoder."""


def load_pretrained(load: Callable[[], Any], name: str, source: str) -> Any:
    """Return `load()`, which reads from `source`; raises WeightsError that says where to put the weights."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        if Path(source).is_absolute() and not Path(source).exists():
            reason = "no such folder"
        variable = f"set AFFECT_{name.upper()} to it or " if name.isidentifier() else ""
        raise WeightsError(
            f"encoder {name}: no usable weights at {source!r} ({reason}); expected a local folder or a hub id that can "
            f"be reached: download the weights, then {variable}add a line '{name}: folder' to the YAML file that "
            "AFFECT_WEIGHTS names"
        ) from error


def load_model(model_class: type[PreTrainedModel], name: str, source: str, device: str) -> PreTrainedModel:
    """Return a model in float32 for inference.

    Raises WeightsError where there is none, one of another kind, or one of which weights are missing.
    """
    config = load_pretrained(lambda: PretrainedConfig.get_config_dict(source)[0], name, source)
    found, expected = config.get("model_type"), model_class.config_class.model_type
    if found != expected:
        raise WeightsError(
            f"encoder {name}: {source!r} holds a model of type {found!r}; expected {expected!r}, "
            "so point to another folder"
        )
    model, info = load_pretrained(
        lambda: model_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True), name, source
    )
    # the embedding of masked time steps is for training only, and some checkpoints leave it out
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise WeightsError(
            f"encoder {name}: {source!r} lacks {len(missing)} weights of {model_class.__name__} (first: {missing[0]}); "
            "expected a whole checkpoint, so download it again"
        )
    return model.eval().to(device)


def source_hash(source: str) -> str:
    """Return the weights hash of a local folder, or of the cached copy of a hub id; '' where neither is there."""
    if Path(source).exists():
        return weights_hash(source)
    try:
        return weights_hash(huggingface_hub.snapshot_download(source, local_files_only=True))
    except (OSError, ValueError):
        return ""


def split_rows(rows: np.ndarray, items: Sequence[Sequence[Any] | None]) -> list[np.ndarray]:
    """Give the rows of a batch [sum T, D] back to the items they came from, as float32 [T, D] each."""
    lengths = [0 if item is None else len(item) for item in items]
    return np.split(rows.astype(np.float32, copy=False), np.cumsum(lengths)[:-1]) if items else []


def chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield slices of at most `size` rows, which bounds the memory of one forward pass."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
