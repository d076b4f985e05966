"""Put the .npy features of a data set into one file, which is read several times as fast.

    python tools/pack_features.py --dataset mydata --save_root preextracted_features --delete
    python tools/pack_features.py --dataset mydata --save_root preextracted_features --unpack

Packed features are read by every program here as the files were. A .npy file is read before a packed one, so the pack
makes reading faster once --delete has removed the files, each after it was read back from the pack. --unpack gives the
same bytes back. New files are added to the pack by packing again. Ends with code 1 when a file was refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from affect.features.packing import pack, unpack
from affect.features.store import FeatureStore


def main(arguments: list[str] | None = None) -> int:
    """Pack or unpack a data set and print a summary; return the exit code."""
    args = parse_arguments(arguments)
    root = FeatureStore(args.save_root, args.dataset).root
    report = unpack(root, args.folders) if args.unpack else pack(root, args.folders, args.delete)
    table = Table(title=f"{root} {'unpacked' if args.unpack else 'packed'}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    counts = {"packed": report.added, "packed before": report.kept, "deleted": report.deleted}
    counts = {"written": report.written} if args.unpack else counts
    for what, number in {**counts, "refused": len(report.refused)}.items():
        table.add_row(f"files {what}", f"{number:,}")
    Console().print(table)
    if not (args.delete or args.unpack):
        print("the .npy files are still there and are read first; --delete removes those that are packed")
    for sentence in report.refused[:20]:
        print(sentence)
    if len(report.refused) > 20:
        print(f"… and {len(report.refused) - 20} more")
    return 1 if report.refused else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True)
    add("--save_root", type=Path, default="preextracted_features")
    add("--folders", type=_names, default=[], help="feature folders, separated by commas (default: all)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--delete", action="store_true", help="remove each file once it was read back from the pack")
    group.add_argument("--unpack", action="store_true", help="turn the pack back into files")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
