"""The feature store: the only owner of feature paths, shapes and provenance.

On disk (a contract with existing users): `{root}/{dataset}/{folder}/{name}.npy`, where
`folder` comes from `feature_folder` and each folder has a sidecar `provenance.json`.
An array of zero rows says that the clip was looked at and has none of that modality
(no face, no sound); a missing file says that nobody looked yet.

The files of a data set may be packed (`affect.features.pack`). A .npy file counts before a packed one of the same
name, and whether there is one is asked at every read, so what is written is what is read from then on.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from affect.core.files import atomic_write
from affect.core.schema import Modality, check_name
from affect.features.arrays import (
    FeatureError,
    as_rows,
    check_finite,
    check_rows,
    check_unit_rows,
    parse_npy,
    read_array,
)
from affect.features.pack import INDEX, PACKED, Pack, index_stamp, open_pack

SIDECAR = "provenance.json"
EXTRACT_COMMAND = "python tools/extract_features.py --dataset {dataset} --modality {modality} --save_root {root} …"


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


def encoder_identity(encoder: str) -> str:
    """Return an encoder's name without the machine: a path is cut to its last part, hub ids and plain names stay.

    A path is what begins with `/`, `~`, `.` or a drive, or has more than one `/`; `org/model` is a hub id.
    `hf:/models/some dir` -> `hf:some dir`; `open_clip:ViT-B-16//weights/b16.pt` -> `open_clip:ViT-B-16/b16.pt`;
    a run of the image track is its folder: `fer:output/rafdb/best.safetensors` -> `fer:rafdb`.
    Different weights of the same last part share a folder name; the weights hash in its sidecar keeps them apart.
    """
    kind, rest = re.fullmatch(r"((?:[A-Za-z_-]{2,}:)*)(.*)", encoder, re.DOTALL).groups()
    model = ""
    if kind == "open_clip:" and "/" in rest:
        model, _, rest = rest.partition("/")
        model += "/"
    path = rest.replace("\\", "/")
    if kind == "fer:":
        last = "/last.safetensors" if path.endswith("/last.safetensors") else ""
        folder = path.removesuffix("/best.safetensors").removesuffix(last)
        return f"{kind}{PurePosixPath(folder).name}{last}"
    if re.match(r"[/~.]|[A-Za-z]:/", path) or path.count("/") > 1:
        rest = PurePosixPath(path).name
    return f"{kind}{model}{rest}"


@dataclass
class FeatureStore:
    """Features of one data set under one root."""

    root: Path
    dataset: str
    writer: str = ""
    """Name of the one process that writes with it (see `affect.core.files.atomic_write`)."""
    _checked: dict[str, FeatureSpec] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Folder -> what its sidecar was found to fit."""
    _written: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Folder -> the provenance that its sidecar was found to agree with."""
    _base: str = field(init=False, repr=False, compare=False)
    """The folder as text, for paths are made at every read."""
    _index: Path = field(init=False, repr=False, compare=False)
    _pack: Pack | None = field(default=None, init=False, repr=False, compare=False)
    _pack_stamp: tuple[int, int, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.dataset, "dataset name")
        if self.writer:
            check_name(self.writer, "name of the writer")
        root = Path(self.root)
        # users name either the common root or the data set's own folder
        self.root = root if root.name.lower() == self.dataset.lower() else root / self.dataset.lower()
        self._base, self._index = str(self.root), self.root / PACKED / INDEX

    def __getstate__(self) -> dict[str, Any]:
        """Without the open pack: another process maps the files itself."""
        return {**self.__dict__, "_pack": None, "_pack_stamp": None}

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
            if names and (pack := self._open_pack()):
                names = [name for name, held in zip(names, pack.holds(folder, names), strict=True) if not held]
        return names

    def names(self) -> set[str]:
        """Return every clip that has an array in any folder."""
        files = {path.stem for path in self.root.glob("*/*.npy") if path.parent.name != PACKED}
        pack = self._open_pack()
        return files.union(pack.clip_names() if pack else ())

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
                except FileNotFoundError:  # packed and deleted since the line before
                    pass
            pack = self._open_pack()
            if pack and (place := pack.find(folder, name)):
                self._check_folder(spec, folder)
                where = f"{self._base}/{PACKED}: {folder}/{name}.npy"
                # other faults were looked for when it was packed
                return np.array(as_rows(parse_npy(pack.content(*place), where), spec.dim, where), np.float32)
        command = EXTRACT_COMMAND.format(dataset=self.dataset, modality=spec.modality, root=self.root.parent)
        raise FeatureError(
            f"clip {name!r} has no {spec.modality} features: expected {self.path(spec, name)}; make it with: {command}"
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
        with atomic_write(path, self.writer) as handle:
            np.save(handle, np.ascontiguousarray(array), allow_pickle=False)
        return path

    def declare(self, spec: FeatureSpec, provenance: dict[str, Any]) -> None:
        """Say how the features of a folder are made: write its sidecar, or check that it agrees (raises FeatureError).

        `write` does so itself; several threads call it once before they write side by side.
        """
        path = self.root / spec.folder / SIDECAR
        content = {**_identity(spec), **provenance}
        there = path.is_file()
        if there and self._written.get(spec.folder) == content:
            return
        found = self._sidecar(spec.folder)
        if found is not None and (key := first_difference(found, json.loads(json.dumps(content)))):
            raise FeatureError(
                f"{path}: {key} is {found.get(key)!r}, but this run would write {content[key]!r}; "
                "use another --save_root, or delete the folder (if it is packed, unpack it first) to make it anew"
            )
        if not there:
            with atomic_write(path, self.writer) as handle:
                handle.write(json.dumps(content, indent=1, sort_keys=True).encode())
        self._written[spec.folder] = content

    def has_folder(self, spec: FeatureSpec) -> bool:
        """Whether there is a folder of these features or a pack of it, under any spelling."""
        pack = self._open_pack()
        return any((self.root / folder).is_dir() or (pack and folder in pack.folders) for folder in spec.folders)

    def provenance(self, spec: FeatureSpec) -> dict[str, Any] | None:
        """Return what the sidecar of these features says, or None where there is none."""
        return next(filter(None, (self._sidecar(folder) for folder in spec.folders)), None)

    def _has_file(self, folder: str, name: str) -> bool:
        return os.access(f"{self._base}/{folder}/{name}.npy", os.F_OK)

    def _read_file(self, spec: FeatureSpec, folder: str, name: str) -> np.ndarray:
        self._check_folder(spec, folder)
        path = f"{self._base}/{folder}/{name}.npy"
        array = read_array(path, spec.dim)
        if spec.modality == Modality.AU:
            check_unit_rows(array, path)
        return array

    def _open_pack(self) -> Pack | None:
        """The pack as it is on disk now, which is looked up each time: a run may go on while features are packed."""
        stamp = index_stamp(self._index)
        if stamp != self._pack_stamp:
            self._pack, self._pack_stamp = open_pack(self.root / PACKED), stamp
            self._checked.clear()
            self._written.clear()
        return self._pack

    def _sidecar(self, folder: str) -> dict[str, Any] | None:
        """What the sidecar of a folder says, which must be what it said when features of the folder were packed."""
        pack = self._open_pack()
        packed = pack.sidecars.get(folder) if pack else None
        path = self.root / folder / SIDECAR
        if not path.is_file():
            return packed
        found = read_sidecar(path)
        if packed and (key := first_difference(found, packed)):
            raise FeatureError(
                f"{path}: {key} is {found.get(key)!r}, but features of this folder were packed when it was "
                f"{packed[key]!r}; bring that sidecar back, or keep the two kinds under different --save_root"
            )
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
            expected = {key: value for key, value in _identity(spec).items() if key in found}
            if key := first_difference(found, expected):
                raise FeatureError(
                    f"{path}: {key} is {found[key]!r}, but the run expects {expected[key]!r}; "
                    "change the config or extract these features anew"
                )
        self._checked[folder] = spec


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return what a sidecar says (raises FeatureError where it is no JSON object)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise FeatureError(f"{path}: expected a JSON object that says how the features were made; extract them anew")
    return content


def first_difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Return the first key on which a sidecar disagrees with what is expected, or None.

    Library versions may move under a long extraction, and models between machines; what was computed may not.
    """
    for key in sorted(expected.keys() - {"versions"}):
        values = [encoder_identity(str(v)) if key == "encoder" else v for v in (found.get(key), expected[key])]
        if values[0] != values[1]:
            return key
    return None


def _identity(spec: FeatureSpec) -> dict[str, Any]:
    """What must agree between a feature folder and the run that reads it."""
    encoder = encoder_identity(spec.encoder)
    identity = {"modality": str(spec.modality), "encoder": encoder, "dim": spec.dim, "count": spec.count}
    return {**identity, "sampling": spec.sampling} if spec.modality == Modality.FRAME else identity
