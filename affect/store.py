"""The feature store: the only owner of feature paths, shapes and provenance.

On disk (a contract with existing users): `{root}/{dataset}/{folder}/{name}.npy`, where
`folder` comes from `feature_folder` and each folder has a sidecar `provenance.json`.
An array of zero rows says that the clip was looked at and has none of that modality
(no face, no sound); a missing file says that nobody looked yet.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affect.files import atomic_write
from affect.schema import Modality, check_name

SIDECAR = "provenance.json"
EXTRACT_COMMAND = "python tools/extract_features.py --dataset {dataset} --modality {modality} --save_root {root} …"


class FeatureError(ValueError):
    """A feature that is missing, unreadable or not what the run expects."""


@dataclass(frozen=True)
class FeatureSpec:
    """Which features of one modality a run uses, and so where they are and how wide they are."""

    modality: Modality
    encoder: str
    dim: int
    count: int = 8
    """Frames or sound clips per video (the number in the folder's name)."""
    sampling: str = "uniform"
    """uniform, headtail or emotion_peak; only frames know it, faces and AU are always sampled as named here."""

    @property
    def folder(self) -> str:
        """Name of the folder that features are written to."""
        return feature_folder(self.modality, self.encoder, self.count, self.sampling)


def feature_folder(modality: Modality, encoder: str, count: int = 8, sampling: str = "uniform") -> str:
    """Return the folder name of one kind of feature, e.g. `frame_CLIP_VIT_LARGE_8frms`."""
    encoder = re.sub(r"[^A-Za-z0-9._-]+", "-", encoder).strip("-.")
    if modality == Modality.AUDIO:
        return f"audio_{encoder}_{count}clips"
    if modality == Modality.FRAME and sampling != "uniform":
        return f"frame_{encoder}_{sampling}_{count}frms"
    return f"{modality}_{encoder}_{count}frms"


def _other_spellings(spec: FeatureSpec) -> list[str]:
    """Folder names that other tools gave to the same features."""
    if spec.modality == Modality.FRAME and spec.sampling == "uniform":
        return [spec.folder.replace(f"_{spec.count}frms", f"_uniform_{spec.count}frms")]
    return []


@dataclass
class FeatureStore:
    """Features of one data set under one root."""

    root: Path
    dataset: str
    _checked_folders: set[Path] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        check_name(self.dataset, "dataset name")
        root = Path(self.root)
        # users name either the common root or the data set's own folder
        self.root = root if root.name.lower() == self.dataset.lower() else root / self.dataset.lower()

    def path(self, spec: FeatureSpec, name: str) -> Path:
        """Return where the array of one clip is written."""
        return self.root / spec.folder / f"{check_name(name)}.npy"

    def find(self, spec: FeatureSpec, name: str) -> Path | None:
        """Return where the array of one clip is, under any spelling of the folder, or None."""
        check_name(name)
        for folder in (spec.folder, *_other_spellings(spec)):
            path = self.root / folder / f"{name}.npy"
            if path.is_file():
                return path
        return None

    def missing(self, spec: FeatureSpec, names: Iterable[str]) -> list[str]:
        """Return the clips that have no array yet."""
        return [name for name in names if self.find(spec, name) is None]

    def read(self, spec: FeatureSpec, name: str) -> np.ndarray:
        """Return the features of one clip as float32 [T, D]; T is 0 where the clip has none.

        Raises FeatureError when the file is missing, pickled, of another width, not finite, or
        lies in a folder whose sidecar names another encoder or sampling.
        """
        path = self.find(spec, name)
        if path is None:
            command = EXTRACT_COMMAND.format(dataset=self.dataset, modality=spec.modality, root=self.root.parent)
            raise FeatureError(
                f"clip {name!r} has no {spec.modality} features: expected {self.path(spec, name)}; "
                f"make it with: {command}"
            )
        self._check_folder(spec, path.parent)
        array = read_array(path, spec.dim)
        if spec.modality == Modality.AU:
            norms = np.linalg.norm(array, axis=1)
            if np.any(np.abs(norms - 1) > 1e-2):
                raise FeatureError(f"{path}: expected rows of length 1, found {norms.min():.3f} to {norms.max():.3f}")
        return array

    def write(self, spec: FeatureSpec, name: str, array: np.ndarray, provenance: dict[str, Any]) -> Path:
        """Write the features [T, D] of one clip, whole or not at all, and the folder's sidecar once.

        Raises FeatureError for an array that `read` would refuse or a folder made differently.
        """
        path = self.path(spec, name)
        check_array(array, spec.dim, str(path))
        self._write_sidecar(spec, path.parent, provenance)
        with atomic_write(path) as handle:
            np.save(handle, np.ascontiguousarray(array), allow_pickle=False)
        return path

    def has_folder(self, spec: FeatureSpec) -> bool:
        """Whether there is a folder of these features, under any spelling."""
        return any((self.root / folder).is_dir() for folder in (spec.folder, *_other_spellings(spec)))

    def provenance(self, spec: FeatureSpec) -> dict[str, Any] | None:
        """Return what the sidecar of these features says, or None where there is none."""
        for folder in (spec.folder, *_other_spellings(spec)):
            path = self.root / folder / SIDECAR
            if path.is_file():
                return _read_sidecar(path)
        return None

    def _write_sidecar(self, spec: FeatureSpec, folder: Path, provenance: dict[str, Any]) -> None:
        path = folder / SIDECAR
        content = {**_identity(spec), **provenance}
        if not path.is_file():
            with atomic_write(path) as handle:
                handle.write(json.dumps(content, indent=1, sort_keys=True).encode())
            return
        found = _read_sidecar(path)
        # library versions may move under a long extraction; what was computed may not
        for key in content.keys() - {"versions"}:
            if found.get(key) != json.loads(json.dumps(content[key])):
                raise FeatureError(
                    f"{path}: {key} is {found.get(key)!r}, but this run would write {content[key]!r}; "
                    "use another --save_root, or delete the folder to make it anew"
                )

    def _check_folder(self, spec: FeatureSpec, folder: Path) -> None:
        if folder in self._checked_folders:
            return
        sidecar = folder / SIDECAR
        if sidecar.is_file():
            found = _read_sidecar(sidecar)
            for key, expected in _identity(spec).items():
                if key in found and found[key] != expected:
                    raise FeatureError(
                        f"{sidecar}: {key} is {found[key]!r}, but the run expects {expected!r}; "
                        "change the config or extract these features anew"
                    )
        else:
            warnings.warn(f"{folder} has no {SIDECAR}: features of unknown origin are used", stacklevel=3)
        self._checked_folders.add(folder)


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise FeatureError(f"{path}: expected a JSON object that says how the features were made; extract them anew")
    return content


def _identity(spec: FeatureSpec) -> dict[str, Any]:
    """What must agree between a feature folder and the run that reads it."""
    identity = {"modality": str(spec.modality), "encoder": spec.encoder, "dim": spec.dim, "count": spec.count}
    return {**identity, "sampling": spec.sampling} if spec.modality == Modality.FRAME else identity


def read_array(path: Path, dim: int) -> np.ndarray:
    """Return an array file as finite float32 [T, dim]; a vector [dim] counts as one row.

    Raises FeatureError for anything else, pickled files included.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(
            f"{path}: expected a plain .npy array [T, {dim}], but it cannot be read ({error}); extract it anew"
        ) from None
    if not isinstance(array, np.ndarray):
        raise FeatureError(f"{path}: expected one .npy array [T, {dim}], found an archive; extract it anew")
    if array.ndim == 1 and array.shape[0] == dim:
        array = array[None]
    check_array(array, dim, str(path))
    return array.astype(np.float32, copy=False)


def check_array(array: np.ndarray, dim: int, where: str) -> None:
    """Raise FeatureError unless `array` is a finite floating-point [T, dim]."""
    if array.ndim != 2 or array.shape[1] != dim:
        raise FeatureError(
            f"{where}: expected shape [T, {dim}], found {list(array.shape)}; "
            "was another encoder used? extract these features anew or set the dimension in the config"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise FeatureError(f"{where}: expected floating-point numbers, found {array.dtype}; extract it anew")
    if not np.isfinite(array).all():
        raise FeatureError(f"{where}: expected finite numbers, found NaN or infinity; extract it anew")
