"""A network as an ONNX file, for programs without torch, checked against torch.

Input `images` float32 [batch, C, S, S], normalised; output `logits` float32 [batch, L]. Needs the packages of the extra
`onnx`.
"""

from __future__ import annotations

import importlib
import json
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch

from affect.expressions.models import ExpressionModel
from affect.expressions.network_file import ModelCard

TOLERANCE = 1e-4
"""Largest difference of logits that is accepted, per unit of the largest logit where that is above 1."""


def description(card: ModelCard) -> dict[str, Any]:
    """Return all that a program needs to use the network, as plain JSON values."""
    return {
        "classes": list(card.classes),
        "output": "independent truths (sigmoid)" if card.multi_label else "one distribution (softmax)",
        "size": card.input.size,
        "channels": card.input.channels,
        "mean": list(card.input.mean),
        "std": list(card.input.std),
        "aligned": card.aligned,
        "arch": card.model.arch,
        "data": card.data,
        "epoch": card.epoch,
        "scores": card.scores,
    }


def to_onnx(model: ExpressionModel, card: ModelCard, opset: int) -> bytes:
    """Return the content of an ONNX file, with the description in its metadata.

    Raises ImportError naming the extra where a package is missing, ValueError where the network cannot be exported.
    """
    onnx = _needed("onnx")
    _needed("onnxscript")  # what torch.onnx builds graphs with
    # exported graphs keep strides, and ONNX knows one memory layout only
    model = model.eval().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        try:
            program = torch.onnx.export(
                model,
                (_noise(card, 2),),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{card.model.arch} cannot be written with opset {opset} ({reason})") from error
    proto = program.model_proto
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:  # the exporter gives up on it without a word
        raise ValueError(f"{card.model.arch} was written for batches of one size only, expected any; report this")
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description(card).items()}
    onnx.helper.set_model_props(proto, told)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def difference_to_torch(content: bytes, model: ExpressionModel, card: ModelCard) -> float:
    """Return the largest difference of logits between onnxruntime and torch, for batches of one and of three.

    Raises ValueError where it is above TOLERANCE.
    """
    session = _needed("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in (1, 3):
        images = _noise(card, count)
        with torch.inference_mode():
            expected = model(images).numpy()
        (found,) = session.run(["logits"], {"images": images.numpy()})
        accepted = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(found - expected).max())
        if not difference <= accepted:  # NaN is a difference too
            raise ValueError(
                f"the exported {card.model.arch} gives logits {difference:.1e} away from torch's for {count} images, "
                f"expected at most {accepted:.0e}; nothing was written, try another --opset"
            )
        largest = max(largest, difference)
    return largest


def _noise(card: ModelCard, count: int) -> torch.Tensor:
    """Return what looks like normalised images: [count, C, S, S]."""
    spec = card.input
    pixels = torch.rand(count, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(count))
    return (pixels - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]


def _needed(name: str) -> ModuleType:
    """Return a package of the extra `onnx` (raises ImportError saying how to install it)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the package {name} is not installed; install it with: pip install 'affect[onnx]'"
        ) from error
