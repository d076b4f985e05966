"""Making packs of .npy features and turning them back into files (see `affect.features.pack` for what is on disk).

A pack is only ever added to: new files go into new shards, a new index takes the old one's place by one rename, and
what no index names is removed by the next run. So a run that is killed costs its own work and nothing else.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.progress import track

from affect.core.files import atomic_write, sync_folder
from affect.core.schema import Modality, check_name
from affect.features.arrays import FeatureError, as_rows, check_finite, check_unit_rows, parse_npy, read_bytes
from affect.features.pack import INDEX, PACKED, VERSION, Pack, open_pack
from affect.features.store import SIDECAR, first_difference, read_sidecar

ALIGNMENT = 64
LOCK = ".lock"


@dataclass
class PackReport:
    """What became of the files of a data set."""

    added: int = 0
    """Files whose bytes went into new shards."""
    kept: int = 0
    """Files that the pack held already, byte for byte."""
    deleted: int = 0
    refused: list[str] = field(default_factory=list)
    """One sentence for each file that was left as it is, naming it and its fault."""


@dataclass
class UnpackReport:
    """What became of the files of a pack."""

    written: int = 0
    refused: list[str] = field(default_factory=list)
    """One sentence for each file that cannot be read from the pack."""


def pack(root: Path, folders: Collection[str] = (), shard_size: int = 1 << 30, delete: bool = False) -> PackReport:
    """Pack the .npy files below a data set's folder; without `folders` those of every feature folder.

    shard_size: bytes after which a shard is closed; the arrays of one clip are never parted. delete: remove each
    file after its bytes were read back from the pack. Raises FeatureError where there is nothing to pack, a folder
    was packed when its sidecar said something else, or another run packs.
    """
    report = PackReport()
    with _locked(root):
        old = open_pack(root / PACKED)
        files = _list_files(root, folders)
        if not files and old is None:
            raise FeatureError(f"{root}: expected feature folders with .npy files, found none; nothing is to be packed")
        sidecars = _read_sidecars(root, files, old)
        columns = [*(old.folders if old else []), *sorted(files.keys() - set(old.folders if old else []))]
        _sweep(root / PACKED, old)
        new = _Additions(root / PACKED, _next_number(old), shard_size)
        for name in _track(sorted(set().union(*files.values())), "packing"):
            new.begin_clip(name)
            for folder in files:
                if name in files[folder]:
                    path, dim = root / folder / f"{name}.npy", sidecars.get(folder, {}).get("dim")
                    content = _checked_bytes(path, dim, old, report)
                    if content:
                        new.add(columns.index(folder), content)
        new.close()
        if new.places:
            _add_to_index(old, new, columns, sidecars)
        if delete:
            _delete_packed(root, files, report)
    return report


def unpack(root: Path, folders: Collection[str] = ()) -> UnpackReport:
    """Turn packed features back into .npy files of the same bytes.

    A file that is there is newer than the packed one and stays. Without `folders` the pack is removed at the end,
    else these folders leave its index; when a part of it cannot be read, all of it stays. Raises FeatureError where
    there is no pack or no such folder in it.
    """
    report = UnpackReport()
    with _locked(root):
        packed = open_pack(root / PACKED)
        if packed is None:
            raise FeatureError(f"{root / PACKED}: expected packed features, found none; nothing is to be unpacked")
        _sweep(root / PACKED, packed)
        _require(folders, packed.folders, root / PACKED)
        columns = [i for i, folder in enumerate(packed.folders) if not folders or folder in folders]
        for row, name in enumerate(_track(packed.clip_names(), "unpacking")):
            for column in columns:
                path = root / packed.folders[column] / f"{check_name(name)}.npy"
                if packed.entries[row, column, 2] and not path.is_file():
                    _unpack_file(packed, row, column, path, report)
        for folder in (packed.folders[column] for column in columns):
            if folder in packed.sidecars and not (root / folder / SIDECAR).is_file():
                with atomic_write(root / folder / SIDECAR, "unpack") as handle:
                    handle.write(json.dumps(packed.sidecars[folder], indent=1, sort_keys=True).encode())
            if (root / folder).is_dir():
                sync_folder(root / folder)
        if not report.refused:
            _forget(root / PACKED, packed, columns)
    return report


def unused_bytes(packed: Pack) -> int:
    """Return how many bytes of the shards belong to files that were written anew since; unpacking frees them."""
    return sum(size for _, size in packed.shards) - int(_aligned(packed.entries[:, :, 2]).sum())


@dataclass
class _Additions:
    """New shards, and where the files in them lie."""

    folder: Path
    number: int
    shard_size: int
    shards: list[tuple[str, int]] = field(default_factory=list)
    """Closed ones."""
    clips: list[str] = field(default_factory=list)
    places: array = field(default_factory=lambda: array("q"))
    """Five numbers a file: clip, feature folder, shard (counted from the first new one), offset, size."""
    _handle: BinaryIO | None = None

    def begin_clip(self, name: str) -> None:
        """Go on to the next clip; close the shard if it is full, for clips are not parted."""
        self.clips.append(name)
        if self._handle and self._handle.tell() >= self.shard_size:
            self.close()

    def add(self, folder: int, content: bytearray) -> None:
        """Append the bytes of one file of the clip; `folder`: its number."""
        if self._handle is None:
            self._handle = (self.folder / f"shard-{self.number:04d}-{len(self.shards):04d}.bin").open("wb")
        self.places.extend([len(self.clips) - 1, folder, len(self.shards), self._handle.tell(), len(content)])
        self._handle.write(content)
        self._handle.write(bytes(-len(content) % ALIGNMENT))

    def close(self) -> None:
        """Bring the open shard to disk, and out of memory so that it is read back from the disk."""
        if self._handle is None:
            return
        with self._handle as handle:
            handle.flush()
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.shards.append((Path(handle.name).name, handle.tell()))
        self._handle = None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep a second run away, which would take the first one's shards for leftovers; ends with the process."""
    if not root.is_dir():
        raise FeatureError(f"{root}: expected the features of a data set, found no such folder; see --save_root")
    folder = root / PACKED
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FeatureError(f"{folder}: another run packs or unpacks it; wait for its end") from None
        try:
            yield
        finally:  # also when the disk is full, so that half a shard does not fill it
            packed = open_pack(folder)
            _sweep(folder, packed)
            if packed is None:
                (folder / LOCK).unlink()
                folder.rmdir()


def _list_files(root: Path, folders: Collection[str]) -> dict[str, set[str]]:
    """Feature folder -> clips that have a file in it."""
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != PACKED)
    _require(folders, there, root)
    files = {folder: _clips(root / folder) for folder in there if not folders or folder in folders}
    return {folder: clips for folder, clips in files.items() if clips}


def _clips(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name.removesuffix(".npy") for entry in entries if entry.name.endswith(".npy") and entry.is_file()}


def _require(wanted: Collection[str], there: Collection[str], where: Path) -> None:
    absent = sorted(set(wanted) - set(there))
    if absent:
        raise FeatureError(f"{where}: expected the folders {', '.join(absent)}, found {', '.join(there) or 'none'}")


def _read_sidecars(root: Path, files: Collection[str], old: Pack | None) -> dict[str, dict[str, Any]]:
    """Sidecars of all folders, those packed before included, which must not have changed since."""
    sidecars = dict(old.sidecars) if old else {}
    for folder in files:
        path = root / folder / SIDECAR
        if not path.is_file():
            continue
        found = read_sidecar(path)
        if key := first_difference(found, sidecars.get(folder, {})):
            raise FeatureError(
                f"{path}: {key} is {found.get(key)!r}, but features of this folder were packed when it was "
                f"{sidecars[folder][key]!r}; bring that sidecar back, or keep the two kinds under different --save_root"
            )
        sidecars[folder] = found
    return sidecars


def _checked_bytes(path: Path, dim: int | None, old: Pack | None, report: PackReport) -> bytearray | None:
    """Return the bytes of a file that is to be packed; None where the pack holds them or the array is refused."""
    try:
        content = read_bytes(path)
        if _is_packed(old, path.parent.name, path.stem, content):
            report.kept += 1
            return None
        rows = parse_npy(content, str(path))
        rows = as_rows(rows, dim or (rows.shape[-1] if rows.ndim else 0), str(path))
        check_finite(rows, str(path))
        if path.parent.name.startswith(f"{Modality.AU}_"):
            check_unit_rows(rows, str(path))
    except (FeatureError, FileNotFoundError) as error:
        report.refused.append(str(error))
        return None
    report.added += 1
    return content


def _is_packed(packed: Pack | None, folder: str, name: str, content: bytearray) -> bool:
    place = packed.find(folder, name) if packed else None
    return place is not None and packed.content(*place) == content


def _add_to_index(old: Pack | None, new: _Additions, folders: list[str], sidecars: dict[str, dict[str, Any]]) -> None:
    """Put an index of the old and the new files in the place of the old one."""
    clip, folder, shard, offset, size = np.array(new.places, np.int64).reshape(-1, 5).T
    keys = np.array([os.fsencode(name) for name in new.clips])[clip]
    names = np.union1d(old.names, keys) if old else np.unique(keys)
    entries = np.zeros((len(names), len(folders), 3), np.int64)
    if old:
        entries[names.searchsorted(old.names), : len(old.folders)] = old.entries
        shard = shard + len(old.shards)
    entries[names.searchsorted(keys), folder] = np.stack([shard, offset, size], axis=1)
    shards = [*(old.shards if old else []), *new.shards]
    _switch(new.folder, new.number, folders, names, entries, shards, sidecars)


def _switch(
    folder: Path,
    number: int,
    folders: list[str],
    names: np.ndarray,
    entries: np.ndarray,
    shards: list[tuple[str, int]],
    sidecars: dict[str, dict[str, Any]],
) -> None:
    parts = {"names": f"names-{number:04d}.npy", "entries": f"entries-{number:04d}.npy"}
    for part, values in (("names", names), ("entries", entries)):
        with atomic_write(folder / parts[part], "pack") as handle:
            np.save(handle, values)
    index = {
        "version": VERSION,
        **parts,
        "folders": folders,
        "shards": [{"file": file, "bytes": size} for file, size in shards],
        "sidecars": {folder: sidecar for folder, sidecar in sidecars.items() if folder in folders},
    }
    sync_folder(folder)
    with atomic_write(folder / INDEX, "pack") as handle:
        handle.write(json.dumps(index, indent=1).encode())
    sync_folder(folder)


def _delete_packed(root: Path, files: dict[str, set[str]], report: PackReport) -> None:
    """Remove every file whose bytes the pack gives back, read through its index as any reader does."""
    packed = open_pack(root / PACKED)
    for name in _track(sorted(set().union(*files.values())), "checking and deleting"):
        for folder in files:
            path = root / folder / f"{name}.npy"
            if name in files[folder] and path.is_file() and _is_packed(packed, folder, name, read_bytes(path)):
                path.unlink()
                report.deleted += 1


def _unpack_file(packed: Pack, row: int, column: int, path: Path, report: UnpackReport) -> None:
    try:
        content = packed.content(row, column)
        parse_npy(content, f"{packed.path}: {path.parent.name}/{path.name}")
    except FeatureError as error:
        report.refused.append(str(error))
        return
    with atomic_write(path, "unpack") as handle:
        handle.write(content)
    report.written += 1


def _forget(folder: Path, packed: Pack, columns: list[int]) -> None:
    """Take columns out of the index; remove the pack when nothing is left in it."""
    stay = [column for column in range(len(packed.folders)) if column not in columns]
    rows = packed.entries[:, stay, 2].any(axis=1)
    if not rows.any():
        (folder / INDEX).unlink()
        sync_folder(folder)
        return
    folders = [packed.folders[column] for column in stay]
    entries = packed.entries[rows][:, stay]
    _switch(folder, _next_number(packed), folders, packed.names[rows], entries, packed.shards, packed.sidecars)


def _sweep(folder: Path, packed: Pack | None) -> None:
    """Remove what killed runs and earlier indices left."""
    keep = {LOCK}
    if packed:
        keep |= {INDEX, packed.parts[0], packed.parts[1], *(file for file, _ in packed.shards)}
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()


def _track(names: list[str], what: str) -> Iterable[str]:
    return track(names, what, disable=len(names) < 1000)


def _next_number(packed: Pack | None) -> int:
    return int(packed.parts[0].split("-")[1].removesuffix(".npy")) + 1 if packed else 1


def _aligned(sizes: np.ndarray) -> np.ndarray:
    return -(-sizes // ALIGNMENT) * ALIGNMENT
