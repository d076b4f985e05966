"""How well an AU backend agrees with OpenFace on the same videos: Pearson r of every action unit.

    python tools/compare_au.py --au_backend mediapipe --video_root clips --openface_root openface --out table.md

Compares every `openface/a.csv` with the video `clips/a.*`, over the frames in which both have a face (OpenFace: at a
confidence of at least 0.8). `--same_person a,b,c` names videos of one person. docs/au_backends.md explains the columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from extractors.run.session import AU_BACKENDS, check_backend


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = [name for name in AU_BACKENDS if name != "openface"]
    parser.add_argument("--au_backend", choices=backends, default="mediapipe")
    parser.add_argument("--video_root", type=Path, required=True)
    parser.add_argument("--openface_root", type=Path, required=True)
    parser.add_argument("--same_person", action="append", default=[], help="names of videos of one person, by comma")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    args = parser.parse_args(arguments)
    from extractors.au.agreement import TABLES, agreement_rows, as_markdown, compare, find_pairs

    try:
        check_backend(args.au_backend)
        videos = find_pairs(args.openface_root, args.video_root)
        persons = {table.stem: table.stem for table in videos}
        persons |= {name: names for names in args.same_person for name in names.split(",")}
        agreements, frames = compare(TABLES[args.au_backend], videos, persons)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cells = agreement_rows(agreements)
    table = Table(*cells[0], title=f"{args.au_backend} and OpenFace: {frames} frames of {len(videos)} videos")
    for line in cells[1:]:
        table.add_row(*line)
    Console().print(table)
    if args.out:
        args.out.write_text(as_markdown(cells), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
