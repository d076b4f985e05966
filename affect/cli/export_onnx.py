"""Write a trained expression network as ONNX, for programs without torch.

    python tools/export_onnx.py --ckpt output/rafdb --out rafdb.onnx --check
    python tools/export_onnx.py --ckpt output/rafdb/best.safetensors --out rafdb.onnx --opset 17

Input `images` float32 [batch, C, S, S], normalised; output `logits` float32 [batch, L]. Class names, size, mean and
deviation are in the model's metadata and in a JSON file beside it. --check compares the logits with torch's and writes
nothing where they differ. Needs the packages of the extra `onnx`: pip install 'affect[onnx]'.
"""

from __future__ import annotations

import argparse
import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from affect.core.files import atomic_write
from affect.expressions.models import ExpressionModel, load_model
from affect.expressions.network_file import ModelCard

TOLERANCE = 1e-4
"""Largest difference of logits that --check accepts, per unit of the largest logit where that is above 1."""
OPSET = 18


def main(arguments: list[str] | None = None) -> None:
    """Export one checkpoint and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="best.safetensors or last.safetensors of a run, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write; a .json file is put beside it")
    parser.add_argument("--opset", type=int, default=OPSET, help=f"version of ONNX's operators, default {OPSET}")
    parser.add_argument("--check", action="store_true", help="run it with onnxruntime and compare with torch")
    args = parser.parse_args(arguments)
    if args.out.suffix == ".json":
        raise ValueError(
            f"--out {args.out}: expected the name of an ONNX file, the .json is put beside it; end it in .onnx"
        )
    model, card = load_model(args.ckpt)
    content, difference = export(model, card, args.opset, args.check)
    with atomic_write(args.out) as handle:
        handle.write(content)
    with atomic_write(args.out.with_suffix(".json")) as handle:
        handle.write(json.dumps(description(card), indent=1).encode())
    checked = f", logits within {difference:.1e} of torch's" if args.check else ""
    print(f"wrote {args.out}: {len(content) / 2**20:.1f} MiB, {len(card.classes)} classes{checked}")


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


def export(model: ExpressionModel, card: ModelCard, opset: int = OPSET, check: bool = False) -> tuple[bytes, float]:
    """Return the content of an ONNX file and, with `check`, the largest difference of its logits to torch's (else 0).

    Raises ImportError naming the extra where a package is missing, ValueError where the network cannot be
    exported or differs.
    """
    onnx = needed("onnx")
    needed("onnxscript")  # what torch.onnx builds graphs with
    # exported graphs keep strides, and ONNX knows one memory layout only
    model = model.eval().to(memory_format=torch.contiguous_format)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        try:
            program = torch.onnx.export(
                model,
                (pictures(card, 2),),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=({0: batch},),
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
    content = proto.SerializeToString()
    return content, difference_to_torch(content, model, card) if check else 0.0


def difference_to_torch(content: bytes, model: ExpressionModel, card: ModelCard) -> float:
    """Return the largest difference of logits between onnxruntime and torch, for batches of one and of three.

    Raises ValueError where it is above TOLERANCE.
    """
    runtime = needed("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in (1, 3):
        images = pictures(card, count)
        with torch.inference_mode():
            expected = model(images).numpy()
        (found,) = session.run(["logits"], {"images": images.numpy()})
        scale = max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * scale:  # NaN is a difference too
            raise ValueError(
                f"the exported {card.model.arch} gives logits {difference:.1e} away from torch's for {count} images, "
                f"expected at most {TOLERANCE * scale:.0e}; nothing was written, try another --opset"
            )
        largest = max(largest, difference)
    return largest


def pictures(card: ModelCard, count: int) -> torch.Tensor:
    """Return noise that looks like normalised images: [count, C, S, S]."""
    spec = card.input
    pixels = torch.rand(count, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(count))
    return (pixels - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]


def needed(name: str) -> ModuleType:
    """Return a package of the extra `onnx` (raises ImportError saying how to install it)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the package {name} is not installed; install it with: pip install 'affect[onnx]'"
        ) from error
