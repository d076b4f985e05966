"""Write a trained expression network as ONNX, for programs without torch.

    python tools/export_onnx.py --ckpt output/rafdb --out rafdb.onnx --check
    python tools/export_onnx.py --ckpt output/rafdb/best.safetensors --out rafdb.onnx --opset 17

Input `images` float32 [batch, C, S, S], normalised; output `logits` float32 [batch, L]. Class names, size, mean and
deviation are in the model's metadata and in a JSON file beside it. --check compares the logits with torch's and writes
nothing where they differ. Needs the packages of the extra `onnx`: pip install 'affect[onnx]'.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from affect.core.files import atomic_write

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
    from affect.expressions.models import load_model
    from affect.expressions.onnx_file import description, difference_to_torch, to_onnx

    model, card = load_model(args.ckpt)
    content = to_onnx(model, card, args.opset)
    checked = f", logits within {difference_to_torch(content, model, card):.1e} of torch's" if args.check else ""
    with atomic_write(args.out) as handle:
        handle.write(content)
    with atomic_write(args.out.with_suffix(".json")) as handle:
        handle.write(json.dumps(description(card), indent=1).encode())
    print(f"wrote {args.out}: {len(content) / 2**20:.1f} MiB, {len(card.classes)} classes{checked}")
