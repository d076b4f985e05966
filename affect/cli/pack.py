"""Lay the .npy features of a data set side by side in a few shards, which are read several times as fast.

    python tools/pack_features.py --dataset mydata --save_root preextracted_features --delete
    python tools/pack_features.py --dataset mydata --save_root preextracted_features --unpack

Packed features are read by every program here as the files were. A .npy file is read before a packed one, so the pack
makes reading faster once --delete has removed the files, each after it was read back from the pack. --unpack gives the
same bytes back. New files are added to the pack by packing again. Ends with code 1 when a file was refused.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from affect.features.pack import PACKED, open_pack
from affect.features.packing import PackReport, pack, unpack, unused_bytes
from affect.features.store import FeatureStore

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def main(arguments: list[str] | None = None) -> int:
    """Pack or unpack a data set and print a summary; return the exit code."""
    args = parse_arguments(arguments)
    root = FeatureStore(args.save_root, args.dataset).root
    if args.unpack:
        report = unpack(root, args.folders)
        rows = {"files written": report.written, "files refused": len(report.refused)}
        print_table(f"{root} unpacked", {key: f"{value:,}" for key, value in rows.items()})
    else:
        report = pack(root, args.folders, args.shard_size, args.delete)
        print_summary(root, report, args.delete)
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
    add("--shard_size", type=_size, default="1GiB", help="size at which a shard is closed, e.g. 512MiB")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--delete", action="store_true", help="remove each file once it was read back from the pack")
    group.add_argument("--unpack", action="store_true", help="turn the pack back into files")
    return parser.parse_args(arguments)


def print_summary(root: Path, report: PackReport, delete: bool) -> None:
    """Print what was packed and what the pack holds now."""
    rows = {"files packed": report.added, "files packed before": report.kept}
    if delete:
        rows["files deleted"] = report.deleted
    rows["files refused"] = len(report.refused)
    table = {key: f"{value:,}" for key, value in rows.items()}
    packed = open_pack(root / PACKED)
    if packed:
        table["clips in the pack"] = f"{len(packed.names):,}"
        table["shards"] = f"{len(packed.shards):,} ({sum(size for _, size in packed.shards) / 2**20:,.1f} MiB)"
        table["of files since replaced"] = f"{unused_bytes(packed) / 2**20:,.1f} MiB"
    print_table(f"{root} packed", table)
    if not delete and report.added + report.kept:
        print("the .npy files are still there and are read first; --delete removes those that are packed")


def print_table(title: str, rows: dict[str, str]) -> None:
    """Print names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if not found or found[2].upper() not in _UNITS or not int(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 1GiB or 512MiB, found {text!r}")
    return int(found[1]) * _UNITS[found[2].upper()]
