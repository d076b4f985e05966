"""Trained models in other programs' forms.

affect export onnx --ckpt output/rafdb --out rafdb.onnx            an expression network
affect export checkpoint output/old/checkpoint_… old.pth           as the AffectGPT systems read it, or back
"""

from __future__ import annotations

import argparse
from importlib import import_module

FORMS = {"onnx": "affect.cli.export_onnx", "checkpoint": "affect.cli.convert_checkpoint"}
"""Form -> the module that writes it; `--help` behind the form tells its flags."""


def main(arguments: list[str] | None = None) -> int:
    """Hand the flags on to what writes the form that is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="see affect export <form> --help")
    args = parser.parse_args(arguments)
    return import_module(FORMS[args.form]).main(args.flags) or 0
