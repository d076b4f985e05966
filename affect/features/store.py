"""The feature store: the only owner of feature paths, shapes and provenance.

On disk (a contract with existing users): `{root}/{dataset}/{folder}/{name}.npy`, where
`folder` comes from `feature_folder` and each folder has a sidecar `provenance.json`.
An array of zero rows says that the clip was looked at and has none of that modality
(no face, no sound); a missing file says that nobody looked yet.

The files of a data set may be packed (`affect.features.packed`). A .npy file counts before a packed one of the same
name, and whether there is one is asked at every read, so what is written is what is read from then on.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.files import atomic_write
from affect.core.reading import quoted
from affect.core.schema import AU_VALUES, Modality, check_name
from affect.features.arrays import FeatureError, check_finite, check_rows, check_unit_rows, read_array
from affect.features.packed import PACKED, Packed
from affect.features.provenance import (
    AU_MAKERS,
    SIDECAR,
    check_as_packed,
    encoder_identity,
    first_difference,
    read_sidecar,
    said,
)

MAKE_WITH = "; make it with: "
ENCODERS = {Modality.AUDIO: "acoustic", Modality.AU: "au"}
"""Stream -> kind of its encoder in flags and keys; of all others visual."""


def extract_command(dataset: str, root: Path, specs: Sequence[FeatureSpec]) -> str:
    """Return the command that makes some features below a root that data sets share."""
    streams = ",".join(spec.modality for spec in specs)
    kinds = {ENCODERS.get(spec.modality, "visual"): spec.encoder for spec in specs}
    encoders = " ".join(f"--{kind}_encoder {encoder}" for kind, encoder in kinds.items())
    return (
        f"python tools/extract_features.py --dataset {dataset} --modality {streams} --save_root {root} {encoders} "
        "--video_root <folder of your clips>"
    )


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
    geometry: str | None = field(default=None, compare=False)
    """squash or crop, where a run says which of the two frames must be; it is in no folder's name."""

    @property
    def folder(self) -> str:
        """Name of the folder that features are written to."""
        return self.folders[0]

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders that features are read from: our own, then the spelling of other tools."""
        folder = feature_folder(self.modality, self.encoder, self.count, self.sampling)
        if self.modality == Modality.FRAME and self.sampling == "uniform":
            return folder, folder.removesuffix(f"_{self.count}frms") + f"_uniform_{self.count}frms"
        return (folder,)


def feature_folder(modality: Modality, encoder: str, count: int = 8, sampling: str = "uniform") -> str:
    """Return the folder name of one kind of feature, e.g. `frame_CLIP_VIT_LARGE_8frms`.

    A hub id keeps both parts (`face_hf-org--model_8frms`), of a path the last part alone counts.
    """
    encoder = encoder_identity(encoder).replace("/", "--")
    encoder = re.sub(r"[^A-Za-z0-9._-]+", "-", encoder).strip("-.")
    if modality == Modality.AUDIO:
        return f"audio_{encoder}_{count}clips"
    if modality == Modality.IMAGE:
        return f"image_{encoder}"
    if modality == Modality.FRAME and sampling != "uniform":
        return f"frame_{encoder}_{sampling}_{count}frms"
    return f"{modality}_{encoder}_{count}frms"


@dataclass
class FeatureStore:
    """Features of one data set under one root."""

    root: Path
    dataset: str
    _checked: dict[str, FeatureSpec] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Folder -> what its sidecar was found to fit."""
    _written: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Folder -> the provenance that its sidecar was found to agree with."""
    _base: str = field(init=False, repr=False, compare=False)
    """The folder as text, for paths are made at every read."""
    _packed: Packed = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.dataset, "dataset name")
        root = Path(self.root)
        # users name either the common root or the data set's own folder
        self.root = root if root.name.lower() == self.dataset.lower() else root / self.dataset.lower()
        self._base = str(self.root)
        self._packed = Packed(f"{self._base}/{PACKED}")

    def path(self, spec: FeatureSpec, name: str) -> Path:
        """Return where the array of one clip is written."""
        return self.root / spec.folder / f"{check_name(name)}.npy"

    def has(self, spec: FeatureSpec, name: str) -> bool:
        """Whether there is an array of one clip, as a file or packed, under any spelling of the folder."""
        return not self.missing(spec, [name])

    def missing(self, spec: FeatureSpec, names: Iterable[str]) -> list[str]:
        """Return the clips that have no array yet."""
        names = [check_name(name) for name in names]
        for folder in spec.folders:
            names = [name for name in names if not self._has_file(folder, name)]
            if names:
                names = [name for name, held in zip(names, self._packed.holds(folder, names), strict=True) if not held]
        return names

    def names(self) -> set[str]:
        """Return every clip that has an array in any folder."""
        files = {path.stem for path in self.root.glob("*/*.npy") if path.parent.name != PACKED}
        return files | self._packed.names()

    def read(self, spec: FeatureSpec, name: str) -> np.ndarray:
        """Return the features of one clip as float32 [T, D], an array of the caller's own; T is 0 where it has none.

        Raises FeatureError when the array is missing, pickled, of another width, not finite, or
        lies in a folder whose sidecar names another encoder or sampling.
        """
        check_name(name)
        for folder in spec.folders:
            if self._has_file(folder, name):
                try:
                    return self._read_file(spec, folder, name)
                except FeatureError:
                    if self._has_file(folder, name):  # else it was packed and deleted since the line before
                        raise
            if self._checked.get(folder) is not spec and folder in self._packed.folders():
                self._check_folder(spec, folder)
            array = self._packed.read(folder, name, spec.dim)
            if array is not None:
                return array
        raise FeatureError(
            f"clip {name!r} has no {spec.modality} features: expected {self.path(spec, name)}{MAKE_WITH}"
            + extract_command(self.dataset, self.root.parent, [spec])
        )

    def write(self, spec: FeatureSpec, name: str, array: np.ndarray, provenance: dict[str, Any]) -> Path:
        """Write the features [T, D] of one clip, whole or not at all, and the folder's sidecar once.

        The file counts before a packed array of the same name. Raises FeatureError for an array that
        `read` would refuse or a folder made differently.
        """
        path = self.path(spec, name)
        check_rows(array, spec.dim, str(path))
        check_finite(array, str(path))
        self.declare(spec, provenance)
        with atomic_write(path) as handle:
            np.save(handle, np.ascontiguousarray(array), allow_pickle=False)
        return path

    def declare(self, spec: FeatureSpec, provenance: dict[str, Any]) -> None:
        """Say how the features of a folder are made: write its sidecar, or check that it agrees (raises FeatureError).

        `write` does so itself; several threads call it once before they write side by side.
        """
        path, content = self.root / spec.folder / SIDECAR, _content(spec, provenance)
        there = path.is_file()
        if there and self._written.get(spec.folder) == content:
            return
        found = self._sidecar(spec.folder)
        if found is not None:
            _require_same(path, found, content)
        # of a faceless clip nobody knows the maker of sentences: the next one tells it
        lacking = AU_MAKERS & content.keys() - found.keys() if found and "measured_by" in found else set()
        if not there or lacking:
            whole = content | (found or {}) if lacking else content
            with atomic_write(path) as handle:
                handle.write(json.dumps(whole, indent=1, sort_keys=True).encode())
        self._written[spec.folder] = content

    def check(self, spec: FeatureSpec, provenance: dict[str, Any]) -> None:
        """Raise FeatureError where features that are there were made otherwise, as far as their sidecar says."""
        for folder in spec.folders:
            if found := self._sidecar(folder):
                known = {
                    key: value for key, value in _content(spec, provenance).items() if said(found, key) is not None
                }
                _require_same(self.root / folder / SIDECAR, found, known)

    def has_folder(self, spec: FeatureSpec) -> bool:
        """Whether there is a folder of these features or a pack of it, under any spelling."""
        packed = self._packed.folders()
        return any((self.root / folder).is_dir() or folder in packed for folder in spec.folders)

    def provenance(self, spec: FeatureSpec) -> dict[str, Any] | None:
        """Return what the sidecar of these features says, or None where there is none."""
        return next(filter(None, (self._sidecar(folder) for folder in spec.folders)), None)

    def _has_file(self, folder: str, name: str) -> bool:
        return os.access(f"{self._base}/{folder}/{name}.npy", os.F_OK)

    def _read_file(self, spec: FeatureSpec, folder: str, name: str) -> np.ndarray:
        self._check_folder(spec, folder)
        path = f"{self._base}/{folder}/{name}.npy"
        array = read_array(path, spec.dim)
        if spec.modality == Modality.AU and spec.encoder != AU_VALUES:
            check_unit_rows(array, path)
        return array

    def _sidecar(self, folder: str) -> dict[str, Any] | None:
        """What the sidecar of a folder says, which must be what it said when features of the folder were packed."""
        packed = self._packed.folders().get(folder)
        path = self.root / folder / SIDECAR
        if not path.is_file():
            return packed or None
        found = read_sidecar(path)
        check_as_packed(path, found, packed or {})
        return found

    def _check_folder(self, spec: FeatureSpec, folder: str) -> None:
        checked = self._checked.get(folder)
        if checked is spec or checked == spec:
            return
        found = self._sidecar(folder)
        path = self.root / folder / SIDECAR
        if found is None:
            warnings.warn(f"{path.parent} has no {SIDECAR}: features of unknown origin are used", stacklevel=4)
        else:
            expected = {key: value for key, value in _identity(spec).items() if said(found, key) is not None}
            if key := first_difference(found, expected):
                width = f"model.preextracted_{ENCODERS.get(spec.modality, 'visual')}_dim in "
                raise FeatureError(
                    f"{path}: {key} is {quoted(said(found, key))}, but the run expects {expected[key]!r}; "
                    f"change {width if key == 'dim' else ''}the config or extract these features anew"
                )
        self._checked[folder] = spec


def _content(spec: FeatureSpec, provenance: dict[str, Any]) -> dict[str, Any]:
    """What a sidecar is to say, as JSON gives it back."""
    return json.loads(json.dumps({**_identity(spec), **provenance}))


def _require_same(path: Path, found: dict[str, Any], content: dict[str, Any]) -> None:
    if key := first_difference(found, content):
        raise FeatureError(
            f"{path}: {key} is {quoted(said(found, key))}, but this run would write {content[key]!r}; "
            "ask for what is there, use another --save_root, or delete the folder (if packed, unpack it first)"
        )


def _identity(spec: FeatureSpec) -> dict[str, Any]:
    """What must agree between a feature folder and the run that reads it."""
    encoder = encoder_identity(spec.encoder)
    identity = {"modality": str(spec.modality), "encoder": encoder, "dim": spec.dim, "count": spec.count}
    if spec.modality == Modality.FRAME:
        identity |= {"sampling": spec.sampling} | ({"frame_geometry": spec.geometry} if spec.geometry else {})
    return identity
