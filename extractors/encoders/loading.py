"""Loading pretrained weights so that a problem is one sentence and never a randomly filled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedModel

# what the libraries raise on folders and models that are not what they expect
_LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError)


class WeightsError(ValueError):
    """Weights that are not there or do not fit the encoder."""


def precision(device: str) -> torch.dtype:
    """Return the numbers that a device computes in: float32, on CUDA bfloat16, or float16 where it is older.

    Raises WeightsError for a CUDA device on a machine where torch finds none.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    if not torch.cuda.is_available():
        raise WeightsError(
            f"device {device} is asked for, but torch finds no GPU here; expected a CUDA build of torch and a driver, "
            "so install both or use the device cpu"
        )
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_pretrained(load: Callable[[], Any], name: str, source: str) -> Any:
    """Return `load()`, which reads from `source`; raises WeightsError that says where to put the weights."""
    try:
        return load()
    except _LIBRARY_ERRORS as error:
        absent = Path(source).is_absolute() and not Path(source).exists()
        hint = "download the weights"
        if name.isidentifier():
            hint += (
                f", then set AFFECT_{name.upper()} to it or add a line '{name}: folder' to the YAML file that "
                "AFFECT_WEIGHTS names"
            )
        raise WeightsError(
            f"encoder {name}: no usable weights at {source!r} ({'no such folder' if absent else _reason(error)}); "
            f"expected a local folder or a hub id that can be reached: {hint}"
        ) from error


def try_out(use: Callable[[], Any], name: str, source: str) -> Any:
    """Return `use()`, the first use of what was loaded from `source`; raises WeightsError where it fails."""
    try:
        return use()
    except WeightsError:
        raise
    except _LIBRARY_ERRORS as error:
        raise WeightsError(
            f"encoder {name}: the model at {source!r} cannot be used ({_reason(error)}); expected one that makes one "
            "row of each frame, sound clip or sentence, so use another model"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def load_model(
    name: str,
    source: str,
    device: str,
    takes: str,
    fits: Callable[[type[PreTrainedModel]], bool],
    model_type: str | None = None,
) -> PreTrainedModel:
    """Return a model for inference, in the device's precision.

    takes: what goes in, for the message; fits: whether a class of models takes that; model_type:
    the only type allowed. Raises WeightsError where there is no model, one of another kind, or one
    of which weights are missing. A pooler of which weights are missing is left out.
    """
    config = load_pretrained(lambda: AutoConfig.from_pretrained(source, trust_remote_code=False), name, source)
    if model_type and config.model_type != model_type:
        raise WeightsError(
            f"encoder {name}: {source!r} holds a model of type {config.model_type!r}; expected {model_type!r}, "
            "so point to another folder"
        )
    model_class = _model_class(config)
    if model_class is None or not fits(model_class):
        found = f", which takes {model_class.main_input_name}" if model_class else ""
        raise WeightsError(
            f"encoder {name}: {source!r} holds a model of type {config.model_type!r}{found}; expected one that takes "
            f"{takes}, so point to another folder"
        )
    dtype = precision(device)
    with _no_loading_report():
        model, info = load_pretrained(
            lambda: model_class.from_pretrained(source, dtype=dtype, output_loading_info=True), name, source
        )
    # the embedding of masked time steps is for training only, and some checkpoints leave it out
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # checkpoints of classifiers have none
    elif missing:
        raise WeightsError(
            f"encoder {name}: {source!r} lacks {len(missing)} weights of {model_class.__name__} (first: {missing[0]}); "
            "expected a whole checkpoint, so download it again"
        )
    return model.eval().to(device)


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
