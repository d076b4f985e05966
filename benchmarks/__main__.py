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

from benchmarks import answer as benchmark_infer
from benchmarks import expressions as benchmark_fer
from benchmarks import extract as benchmark_extract
from benchmarks import store as benchmark_store
from benchmarks import train as benchmark_train

BENCHMARKS = {
    "extract": benchmark_extract,
    "store": benchmark_store,
    "train": benchmark_train,
    "infer": benchmark_infer,
    "fer": benchmark_fer,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark and print its figures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        module.add_arguments(commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0]))
    args = parser.parse_args(arguments)
    with contextlib.redirect_stdout(sys.stderr):  # progress bars; the standard output is for the figures
        figures = BENCHMARKS[args.benchmark].run(args)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
