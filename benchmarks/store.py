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
STATES = ("cold", "warm")
ROUNDS = 5
"""The ways take turns; figures are medians over the rounds, so that other work of the machine falls on all alike."""
WARM_PASSES = 3
"""The quickest of these counts in each round."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

Reader = Callable[[FeatureSpec, str], np.ndarray]


def benchmark_store(clips: int, samples: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return microseconds a sample (4 arrays) of each way, cold and warm, and how many times faster the pack is.

    clips: how many are made in `folder`, empty and on the disk that is asked about; samples: how many are read.
    """
    if not 1 <= samples <= clips:
        raise ValueError(f"expected at least 1 sample and at most one for each of {clips} clips, found {samples}")
    store, rng = FeatureStore(folder, "files"), np.random.default_rng(seed)
    names = [f"clip_{i:06d}" for i in range(clips)]
    _make_features(store, names, rng)
    packed = FeatureStore(folder, "packed")
    shutil.copytree(store.root, packed.root, copy_function=os.link)
    pack(packed.root, delete=True)

    ways = {
        "np.load": lambda: lambda spec, name: _load(store.path(spec, name), spec),
        "store": lambda: FeatureStore(folder, "files").read,
        "packed": lambda: FeatureStore(folder, "packed").read,
    }
    times = {way: np.empty((len(STATES), ROUNDS)) for way in ways}
    for turn in range(ROUNDS):
        picked = [names[i] for i in rng.permutation(clips)[:samples]]
        for way, make_reader in ways.items():
            cold_by = _drop_caches(folder)
            read = make_reader()
            cold, *warm = (_microseconds(read, picked) for _ in range(1 + WARM_PASSES))
            times[way][:, turn] = cold, min(warm)
            Packed(str(packed.root / PACKED)).close()  # while it is open, its pages stay in memory
    faster = {way: each / times["packed"] for way, each in times.items() if way != "packed"}
    return {
        "clips": clips,
        "samples": samples,
        "seed": seed,
        "bytes_a_sample": sum(ROWS * spec.dim * 4 for spec in SPECS),
        "cold_by": cold_by,
        "microseconds_a_sample": _medians(times),
        "packed_is_faster": _medians(faster),
    }


def _medians(ways: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {way: dict(zip(STATES, np.median(each, axis=1).tolist(), strict=True)) for way, each in ways.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of this benchmark to a parser."""
    parser.add_argument("--clips", type=int, default=4000, help="how many clips are made")
    parser.add_argument("--samples", type=int, default=2000, help="how many of them are read in each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where on the disk in question (default: a temporary folder)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the features, time the readers; return the figures."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return benchmark_store(args.clips, args.samples, args.seed, Path(folder))


def _make_features(store: FeatureStore, names: Sequence[str], rng: np.random.Generator) -> None:
    for spec in SPECS:
        store.write(spec, names[0], random_rows(spec.dim, rng), {"made_by": "benchmark"})
        for name in names[1:]:
            np.save(store.path(spec, name), random_rows(spec.dim, rng))
    os.sync()


def random_rows(dim: int, rng: np.random.Generator) -> np.ndarray:
    """Return features of length 1, [ROWS, dim] float32."""
    rows = rng.normal(size=(ROWS, dim)).astype(np.float32)
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
