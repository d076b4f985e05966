"""Turn a checkpoint of the reference into a folder of ours, and back (docs/checkpoints.md).

    python tools/convert_checkpoint.py checkpoint_000030_loss_0.623.pth output/old --cfg-path train_configs/old.yaml
    python tools/convert_checkpoint.py output/old/checkpoint_000030_loss_0.623 checkpoint_000030_loss_0.623.pth

The first writes output/old/checkpoint_000030_loss_0.623/. What has no place there (optimizer, weights of streams that
the layout does not show) is kept beside it in reference.pt, so that the way back gives the same file content.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Convert in the direction that the source asks for: from a file, or from a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=".pth file of the reference, or checkpoint folder of ours")
    parser.add_argument("target", type=Path, help="run folder to write the checkpoint into, or .pth file to write")
    parser.add_argument("--cfg-path", help="YAML file that the reference's checkpoint was trained with")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    args = parser.parse_args(arguments)
    from affect.data.config import load_config
    from affect.tasks.reference_checkpoint import KEPT, from_reference, to_reference

    if args.source.is_dir():
        to_reference(args.source, args.target)
        print(f"wrote {args.target}")
        return
    if not args.cfg_path:
        raise ValueError("--cfg-path: expected the YAML file that this checkpoint was trained with")
    folder, kept = from_reference(args.source, args.target, load_config(args.cfg_path, args.options))
    more = f" (kept in {KEPT}: {', '.join(kept)})" if kept else ""
    print(f"wrote {folder}{more}")
