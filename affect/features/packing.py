"""Packing the .npy files of a data set, and making files of what is packed (see `affect.features.packed`).

Nothing is removed before it was read back equal from where it is kept instead. A run that is killed costs at most what
it had not brought to disk yet, and the same command goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from rich.progress import track

from affect.core.files import atomic_write, sync_folder
from affect.core.schema import AU_VALUES, Modality, check_name
from affect.features.arrays import FeatureError, as_rows, check_finite, check_unit_rows, parse_npy, read_bytes
from affect.features.packed import (
    DATA,
    PACKED,
    Packed,
    array_key,
    clips,
    find,
    folders_of,
    open_environment,
    put,
    read_head,
    refuse_old,
    sealed,
    set_clip,
    write_head,
)
from affect.features.provenance import SIDECAR, check_as_packed, read_sidecar

TOGETHER = 4096
"""Files that are packed in one transaction, about 100 MB."""


@dataclass
class PackReport:
    """What became of the files of a data set, or of its packed arrays."""

    added: int = 0
    """Files whose bytes were packed."""
    kept: int = 0
    """Files that were packed already, byte for byte."""
    deleted: int = 0
    written: int = 0
    """Files made of packed arrays."""
    refused: list[str] = field(default_factory=list)
    """One sentence for each file or array that was left as it is, naming it and its fault."""


def pack(root: Path, folders: Collection[str] = (), delete: bool = False) -> PackReport:
    """Pack the .npy files below a data set's folder; without `folders` those of every feature folder.

    delete: remove each file after its bytes were read back from what is packed, but none of a folder that is a link:
    others may need it. Raises FeatureError where there is nothing to pack, a folder was packed when its sidecar said
    something else, or another run packs.
    """
    report = PackReport()
    with _alone(root) as env:
        files = _list_files(root, folders)
        sidecars = _sidecars(env, root, {folder for _, folder in files})
        if not files and not sidecars:
            raise FeatureError(f"{root}: expected feature folders with .npy files, found none; nothing is to be packed")
        left = iter(track(files, "packing", disable=len(files) < 1000))
        while some := list(islice(left, TOGETHER)):
            _pack_together(env, root, some, sidecars, report)
    if delete:
        linked = _linked(root, {folder for _, folder in files})
        report.refused += [
            f"{root / folder}: is a link; its files were packed and stay where they are" for folder in linked
        ]
        files = [file for file in files if file[1] not in linked]
        with _alone(root) as env, env.begin(buffers=True) as txn:
            for name, folder in track(files, "checking and deleting", disable=len(files) < 1000):
                _delete(txn, root / folder / f"{name}.npy", report)
    return report


def unpack(root: Path, folders: Collection[str] = ()) -> PackReport:
    """Turn packed features back into .npy files of the same bytes.

    A file that is there is newer than the packed array and stays. Without `folders` all are unpacked. They are taken
    out of the pack at the end, unless something in it cannot be read. Raises FeatureError where nothing or no such
    folder is packed.
    """
    report = PackReport()
    with _alone(root) as env:
        with env.begin(buffers=True) as txn:
            packed = read_head(txn, str(root / PACKED)).folders
            if not packed:
                raise FeatureError(f"{root / PACKED}: expected packed features, found none; nothing is to be unpacked")
            _require(folders, packed, root / PACKED)
            wanted = set(folders or packed)
            if linked := _linked(root, wanted):
                raise FeatureError(f"{root / linked[0]}: is a link, and nothing is written to other places; remove it")
            names = list(clips(txn, str(root / PACKED)))
            for name in track(names, "unpacking", disable=len(names) < 1000):
                for folder in wanted.intersection(folders_of(txn, name, str(root / PACKED))):
                    _unpack(txn, root, name, folder, report)
        for folder in filter(Path.is_dir, (root / name for name in wanted)):
            if packed[folder.name] and not (folder / SIDECAR).is_file():
                with atomic_write(folder / SIDECAR) as handle:
                    handle.write(json.dumps(packed[folder.name], indent=1, sort_keys=True).encode())
            sync_folder(folder)
        if not report.refused:
            _forget(env, str(root / PACKED), names, wanted)
    return report


@contextmanager
def _alone(root: Path) -> Iterator[lmdb.Environment]:
    """Open what is packed, or is to be, for writing, and keep other runs away until the block ends."""
    if not root.is_dir():
        raise FeatureError(f"{root}: expected the features of a data set, found no such folder; see --save_root")
    folder, data = root / PACKED, root / PACKED / DATA
    refuse_old(str(folder))
    folder.mkdir(exist_ok=True)
    with data.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle.fileno()), data.stat()):
                raise BlockingIOError  # another run has unpacked it since it was opened
        except OSError:
            raise FeatureError(f"{folder}: another run packs or unpacks it; wait for its end") from None
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what is read back comes from the disk
        Packed(str(folder)).close()
        try:
            env = open_environment(str(folder), readonly=False)
            try:
                yield env
            finally:
                if not env.stat()["entries"]:
                    data.unlink(missing_ok=True)
                env.close()
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
        except lmdb.Error as error:
            raise FeatureError(
                f"{data}: cannot be read or written ({error}); if the disk is full, make room and give the same "
                "command again, else bring the packed features back from a copy"
            ) from None


def _list_files(root: Path, folders: Collection[str]) -> list[tuple[str, str]]:
    """Return clip and feature folder of each file, those of a clip together."""
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != PACKED)
    _require(folders, there, root)
    paths = [Path(entry) for folder in folders or there for entry in os.scandir(root / folder) if entry.is_file()]
    return sorted((path.stem, path.parent.name) for path in paths if path.suffix == ".npy")


def _linked(root: Path, folders: Collection[str]) -> list[str]:
    return sorted(folder for folder in folders if (root / folder).is_symlink())


def _require(wanted: Collection[str], there: Collection[str], where: Path) -> None:
    absent = sorted(set(wanted) - set(there))
    if absent:
        raise FeatureError(f"{where}: expected the folders {', '.join(absent)}, found {', '.join(there) or 'none'}")


def _sidecars(env: lmdb.Environment, root: Path, folders: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return what sidecars say, or said when arrays were packed, which must be the same (raises FeatureError)."""
    with env.begin(buffers=True) as txn:
        sidecars = read_head(txn, str(root / PACKED)).folders
    for path in (root / folder / SIDECAR for folder in folders):
        if path.is_file():
            found = read_sidecar(path)
            check_as_packed(path, found, sidecars.get(path.parent.name, {}))
            sidecars[path.parent.name] = found
    return sidecars


def _pack_together(
    env: lmdb.Environment, root: Path, files: list[tuple[str, str]], sidecars: dict[str, Any], report: PackReport
) -> None:
    """Pack some files and bring them to disk, then say which clips have them and where they lie."""
    packed = root / PACKED
    with env.begin(write=True, buffers=True) as txn:
        head = read_head(txn, str(packed))
        added = [(name, folder) for name, folder in files if _pack(txn, root, name, folder, sidecars, report)]
        if not added:
            return
        head.folders |= {folder: sidecars.get(folder, {}) for _, folder in added}
        write_head(txn, head)
    start, clips_added = _mapped_at(packed / DATA), {}
    with env.begin(buffers=True) as txn:
        for name, folder in added:
            record = np.frombuffer(txn.get(array_key(name, folder)), np.uint8)
            begin = record.__array_interface__["data"][0] - start
            clips_added.setdefault(name, []).append((folder, begin, begin + len(record)))
    with env.begin(write=True, buffers=True) as txn:
        for name, records in clips_added.items():
            folders, begins, ends = zip(*records, strict=True)
            there = folders_of(txn, name, str(packed))
            set_clip(txn, head, name, sorted({*there, *folders}), (min(begins), max(ends) - min(begins)))
        write_head(txn, head)
    report.added += len(added)


def _pack(
    txn: lmdb.Transaction, root: Path, name: str, folder: str, sidecars: dict[str, Any], report: PackReport
) -> bool:
    """Pack a file and return true, unless it is packed already or its array is one that no run may use."""
    path, key = root / folder / f"{name}.npy", array_key(name, folder)
    try:
        content = read_bytes(path)
        if txn.get(key) == sealed(key, content) and folder in folders_of(txn, name, str(root / PACKED)):
            report.kept += 1
            return False
        rows = parse_npy(content, str(path))
        dim = sidecars.get(folder, {}).get("dim") or (rows.shape[-1] if rows.ndim else 0)
        rows = as_rows(rows, dim, str(path))
        check_finite(rows, str(path))
        if folder.startswith(f"{Modality.AU}_") and not folder.startswith(f"{Modality.AU}_{AU_VALUES}_"):
            check_unit_rows(rows, str(path))
    except FeatureError as error:
        report.refused.append(str(error))
        return False
    put(txn, key, content)
    return True


def _mapped_at(file: Path) -> int:
    """Return the address at which this process has mapped a file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(int(line.partition("-")[0], 16) for line in lines if line.endswith(f" {file.resolve()}"))


def _delete(txn: lmdb.Transaction, path: Path, report: PackReport) -> None:
    """Remove a file whose bytes are those that are packed."""
    key = array_key(path.stem, path.parent.name)
    if path.is_file() and txn.get(key) == sealed(key, read_bytes(path)):
        path.unlink()
        report.deleted += 1


def _unpack(txn: lmdb.Transaction, root: Path, name: str, folder: str, report: PackReport) -> None:
    """Make a file of a packed array, or make sure that the one that is there can be read."""
    where = f"{root / PACKED}: {folder}/{name}.npy"
    try:
        path = root / check_name(folder, "feature folder") / f"{check_name(name)}.npy"
        if path.is_file():
            parse_npy(read_bytes(path), str(path))
            return
        content = find(txn, array_key(name, folder), where)
        if content is None:
            raise FeatureError(f"{where}: expected an array, found none; bring the packed features back from a copy")
        with atomic_write(path) as handle:
            handle.write(content)
        if read_bytes(path) != content:
            raise FeatureError(f"{path}: expected the bytes that were written, found others; look after the disk")
        report.written += 1
    except ValueError as error:
        report.refused.append(str(error))


def _forget(env: lmdb.Environment, packed: str, names: list[str], folders: set[str]) -> None:
    """Take the arrays of some folders out of what is packed; when these are all, remove the file."""
    with env.begin(write=True, buffers=True) as txn:
        head = read_head(txn, packed)
        if folders >= head.folders.keys():
            Path(packed, DATA).unlink()
            write_head(txn, head)  # who still has it open sees that something changed, and opens what is there now
            return
        for name in names:
            there = folders_of(txn, name, packed)
            for folder in folders.intersection(there):
                txn.delete(array_key(name, folder))
            set_clip(txn, head, name, [folder for folder in there if folder not in folders])
        head.folders = {folder: sidecar for folder, sidecar in head.folders.items() if folder not in folders}
        write_head(txn, head)
