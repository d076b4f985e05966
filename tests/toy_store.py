"""A small store of features, and what is in it."""

from pathlib import Path

import numpy as np

from affect.core.schema import Modality
from affect.features.store import FeatureSpec, FeatureStore

FRAME = FeatureSpec(Modality.FRAME, "CLIP", dim=4)
FACE = FeatureSpec(Modality.FACE, "CLIP", dim=4)
AU = FeatureSpec(Modality.AU, "TEXT", dim=6)
SPECS = (FRAME, FACE, AU)
NAMES = ["a", "ab", "a b", "名前 é", "x" * 120, "z.1"]


def rows(spec: FeatureSpec, seed: int, count: int = 3, dtype: type = np.float32) -> np.ndarray:
    array = np.random.default_rng([seed, spec.dim]).normal(size=(count, spec.dim))
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(dtype)


def fill_store(root: Path) -> FeatureStore:
    """Every clip with a number of rows of its own, the first without any; float16 among float32."""
    store = FeatureStore(root, "toy")
    for i, name in enumerate(NAMES):
        for spec in SPECS:
            dtype = np.float16 if i % 2 and spec == AU else np.float32
            store.write(spec, name, rows(spec, i, i, dtype), {"weights": "1", "versions": {"numpy": "1"}})
    return store


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def arrays(store: FeatureStore) -> dict[tuple[str, str], bytes]:
    return {(spec.folder, name): store.read(spec, name).tobytes() for spec in SPECS for name in NAMES}
