"""How fast the features of random clips are read, one by one: .npy files and packed, with a cold and a warm cache.

Three ways are timed on the same clips in one run: `np.load` with the checks that every reader has to make, the feature
store on .npy files, and the feature store on the pack of these files. A cold cache needs root (the system's caches are
dropped); without it the files alone are put out of memory, while the folders' entries stay there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.schema import Modality
from affect.features.arrays import as_rows, check_finite, check_unit_rows
from affect.features.packed import PACKED, Packed
from affect.features.packing import pack
from affect.features.store import FeatureSpec, FeatureStore

SPECS = (
    FeatureSpec(Modality.FRAME, "CLIP_VIT_LARGE", 768),
    FeatureSpec(Modality.FACE, "CLIP_VIT_LARGE", 768),
    FeatureSpec(Modality.AUDIO, "HUBERT_LARGE", 1024),
    FeatureSpec(Modality.AU, "CLIP_VITB32", 512),
)
ROWS = 8
ROUNDS = 5
"""The ways take turns; figures are medians over the rounds, so that other work of the machine falls on all alike."""
WARM_PASSES = 3
"""The quickest of these counts in each round."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

Reader = Callable[[FeatureSpec, str], np.ndarray]


def benchmark_store(clips: int, samples: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return microseconds a sample (4 arrays) of each way, cold and warm, and how many times faster the pack is.

    clips: how many are made in `folder`, which should be on the disk that is asked about; samples: how many are read.
    """
    if not 1 <= samples <= clips:
        raise ValueError(f"expected at least 1 sample and at most one for each of {clips} clips, found {samples}")
    store, rng = FeatureStore(folder, "files"), np.random.default_rng(seed)
    if store.root.exists():
        raise ValueError(f"{store.root}: expected no such folder, found one; name an empty folder")
    names = [f"clip_{i:06d}" for i in range(clips)]
    _make_features(store, names, rng)
    packed = FeatureStore(folder, "packed")
    shutil.copytree(store.root, packed.root, copy_function=os.link)
    pack(packed.root, delete=True)

    ways: dict[str, Callable[[], Reader]] = {
        "np.load": lambda: lambda spec, name: _load(store.path(spec, name), spec),
        "store": lambda: FeatureStore(folder, "files").read,
        "packed": lambda: FeatureStore(folder, "packed").read,
    }
    times: dict[str, dict[str, list[float]]] = {way: {"cold": [], "warm": []} for way in ways}
    for _ in range(ROUNDS):
        picked = [names[i] for i in rng.permutation(clips)[:samples]]
        for way, make_reader in ways.items():
            cold_by = _drop_caches(folder)
            read = make_reader()
            times[way]["cold"].append(_microseconds(read, picked))
            times[way]["warm"].append(min(_microseconds(read, picked) for _ in range(WARM_PASSES)))
            Packed(str(packed.root / PACKED)).close()  # while it is open, its pages stay in memory
    size = sum(ROWS * spec.dim * 4 for spec in SPECS)
    return {
        "clips": clips,
        "samples": samples,
        "seed": seed,
        "bytes_a_sample": size,
        "cold_by": cold_by,
        "microseconds_a_sample": {
            way: {state: float(np.median(rounds)) for state, rounds in states.items()} for way, states in times.items()
        },
        "packed_is_faster": {
            way: {state: float(np.median(np.divide(times[way][state], times["packed"][state]))) for state in states}
            for way, states in times.items()
            if way != "packed"
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of this benchmark to a parser."""
    parser.add_argument("--clips", type=int, default=4000, help="how many clips are made")
    parser.add_argument("--samples", type=int, default=2000, help="how many of them are read in each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where on the disk in question (default: a temporary folder)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the features, time the readers; return the figures."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return {"benchmark": "store", **benchmark_store(args.clips, args.samples, args.seed, Path(folder))}


def _make_features(store: FeatureStore, names: Sequence[str], rng: np.random.Generator) -> None:
    for spec in SPECS:
        store.write(spec, names[0], _rows(spec, rng), {"made_by": "benchmark"})
        for name in names[1:]:
            np.save(store.path(spec, name), _rows(spec, rng))
    os.sync()


def _rows(spec: FeatureSpec, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(ROWS, spec.dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _load(path: Path, spec: FeatureSpec) -> np.ndarray:
    """Read a file the plain way, with the checks that a run cannot do without."""
    array = as_rows(np.load(path, allow_pickle=False), spec.dim, str(path))
    check_finite(array, str(path))
    if spec.modality == Modality.AU:
        check_unit_rows(array, str(path))
    return array


def _microseconds(read: Reader, names: Sequence[str]) -> float:
    """Return the mean microseconds a sample."""
    start = time.perf_counter()
    for name in names:
        for spec in SPECS:
            read(spec, name)
    return (time.perf_counter() - start) / len(names) * 1e6


def _drop_caches(root: Path) -> str:
    """Put the files below a folder out of memory and return how that was done."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
        return "drop_caches"
    except OSError:
        for path in filter(Path.is_file, root.rglob("*")):
            with path.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "posix_fadvise"
