"""How fast this machine does what affect does; every figure of one run, as JSON.

    python tools/benchmark.py extract --video_root clips --openface_root openface --copies 20
    python tools/benchmark.py extract --video_root clips --random-init --compare_bare \\
        --visual_encoder CLIP_VIT_LARGE --acoustic_encoder HUBERT_LARGE
    python tools/benchmark.py store --clips 4000
    python tools/benchmark.py train --preset tiny --batch_size 8 --plain
    python tools/benchmark.py infer --preset tiny
    python tools/benchmark.py fer --models poster_v2 compact --batch_sizes 1 8 32
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from importlib import import_module

BENCHMARKS = {"extract": "extract", "store": "store", "train": "train", "infer": "answer", "fer": "expressions"}
"""Name -> the module here that measures it; the others are not imported."""


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark and print its figures; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_written = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, epilog="BENCHMARK --help tells its settings", **as_written)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    name = parser.parse_args(arguments[:1]).benchmark
    module = import_module(f"benchmarks.{BENCHMARKS[name]}")
    parser = argparse.ArgumentParser(f"benchmark {name}", description=module.__doc__, **as_written)
    module.add_arguments(parser)
    args = parser.parse_args(arguments[1:])
    with contextlib.redirect_stdout(sys.stderr):  # progress bars; the standard output is for the figures
        figures = {"benchmark": name, **module.run(args)}
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
