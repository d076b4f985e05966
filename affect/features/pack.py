"""Reading packed features: the .npy files of a data set laid side by side in a few memory-mapped shards.

On disk, in `{root}/{dataset}/packed/`:

    index.json          what the other files are, and the provenance of each packed folder; renamed into place last
    names-0001.npy      [N] clip names as sorted fixed-width bytes, searched by halving
    entries-0001.npy    [N, F, 3] int64: shard, offset and size of each clip's file in each folder; size 0: not packed
    shard-0001-0000.bin the bytes of the .npy files, each at a multiple of 64, those of one clip together

An index of version 1 says that every array was found finite, floating-point and, for action units, of rows of
length 1 when it was packed, so readers need not look again. `affect.features.packing` writes packs.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affect.features.arrays import FeatureError

PACKED = "packed"
INDEX = "index.json"
VERSION = 1
_NEARBY = 1 << 20
"""Arrays of one clip that lie within so many bytes are fetched from disk in one go."""


@dataclass
class Pack:
    """An open pack; it keeps showing what it showed when it was opened, even if another takes its place."""

    path: Path
    """The folder."""
    folders: list[str]
    """Feature folders, in the order of the entries."""
    shards: list[tuple[str, int]]
    """File and its size in bytes."""
    sidecars: dict[str, dict[str, Any]]
    """Feature folder -> what its sidecar said when it was packed; folders without one are left out."""
    names: np.ndarray
    """[N] bytes, sorted."""
    entries: np.ndarray
    """[N, F, 3]: shard, offset, size."""
    parts: tuple[str, str]
    """Files of names and entries."""
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, repr=False)
    _found: tuple[str, int] = field(default=("", -1), repr=False)
    """The clip that was looked for last, and its row or -1: the modalities of a clip are read one after the other."""
    _columns_read: set[int] = field(default_factory=set, repr=False)
    _fetched: tuple[int, int, int] = field(default=(-1, 0, 0), repr=False)
    """Shard, start and end of what the disk was last asked for."""

    def find(self, folder: str, name: str) -> tuple[int, int] | None:
        """Return row and column of one file, or None where it is not packed."""
        if folder not in self.folders:
            return None
        if name != self._found[0]:
            key = os.fsencode(name)
            row = len(self.names)
            if len(key) <= self.names.itemsize:
                row = int(self.names.searchsorted(np.array(key, self.names.dtype)))
            self._found = (name, row if row < len(self.names) and self.names[row] == key else -1)
        row, column = self._found[1], self.folders.index(folder)
        return (row, column) if row >= 0 and self.entries[row, column, 2] else None

    def holds(self, folder: str, names: Sequence[str]) -> np.ndarray:
        """Return [len(names)] bool: which of the clips have a packed file in a folder."""
        if folder not in self.folders or not len(names) or not len(self.names):
            return np.zeros(len(names), bool)
        keys = np.array([os.fsencode(name) for name in names])
        rows = np.minimum(self.names.searchsorted(keys), len(self.names) - 1)
        return (self.names[rows] == keys) & (self.entries[rows, self.folders.index(folder), 2] > 0)

    def clip_names(self) -> list[str]:
        """Return every clip that has a packed file, sorted as bytes."""
        return [os.fsdecode(name) for name in self.names]

    def content(self, row: int, column: int) -> memoryview:
        """Return the bytes of one .npy file as a view of the shard.

        Raises FeatureError where the shard is missing, of another size, or ends before the file does.
        """
        shard, offset, size = self.entries[row, column].tolist()
        shard_map = self._maps.get(shard) or self._open_shard(shard)
        end = offset + size
        if not 0 <= offset < end <= len(shard_map):
            raise FeatureError(
                f"{self.path / INDEX}: expected a file within {self.shards[shard][0]}, found bytes {offset} to {end}; "
                "the pack is damaged: bring it back from a copy"
            )
        fetched, first, last = self._fetched
        if shard != fetched or offset < first or end > last:
            self._fetch(row, column, shard, offset, end)
        return memoryview(shard_map)[offset:end]

    def _open_shard(self, shard: int) -> mmap.mmap:
        if not 0 <= shard < len(self.shards):
            raise FeatureError(
                f"{self.path / INDEX}: expected one of {len(self.shards)} shards, found number {shard}; "
                "the pack is damaged: bring it back from a copy"
            )
        name, expected = self.shards[shard]
        path = self.path / name
        try:
            with path.open("rb") as handle:
                found = os.fstat(handle.fileno()).st_size
                if found != expected:
                    raise FeatureError(
                        f"{path}: expected {expected} bytes, found {found}; "
                        "the pack is damaged: bring the file back from a copy"
                    )
                shard_map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FeatureError(
                f"{path}: expected a shard of packed features, but it cannot be read ({error}); "
                "bring the file back from a copy"
            ) from None
        # clips are read in random order: reading ahead would fetch megabytes that nobody asked for
        shard_map.madvise(mmap.MADV_RANDOM)
        self._maps[shard] = shard_map
        return shard_map

    def _fetch(self, row: int, column: int, shard: int, start: int, end: int) -> None:
        """Ask the disk at once for the clip's arrays of all folders that are in use, so that it is waited for once."""
        self._columns_read.add(column)
        first, last = start, end
        places = self.entries[row].tolist()
        for other_shard, offset, size in [places[column] for column in self._columns_read]:
            if size and other_shard == shard and abs(offset - start) < _NEARBY:
                first, last = min(first, offset), max(last, offset + size)
        last = min(last, len(self._maps[shard]))
        page = first - first % mmap.PAGESIZE
        self._maps[shard].madvise(mmap.MADV_WILLNEED, page, last - page)
        self._fetched = (shard, first, last)


def open_pack(path: Path) -> Pack | None:
    """Return the pack in a folder, or None where there is none (raises FeatureError for a damaged one)."""
    while True:
        stamp = index_stamp(path / INDEX)
        if stamp is None:
            return None
        try:
            return _open(path)
        except FileNotFoundError as error:
            if index_stamp(path / INDEX) == stamp:  # else another pack took its place meanwhile
                raise FeatureError(
                    f"{error.filename}: expected a part of the pack that {path / INDEX} names, found no such file; "
                    "the pack is damaged: bring the file back from a copy"
                ) from None


def index_stamp(index: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever an index takes the place of another; None where there is none."""
    try:
        status = index.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _open(path: Path) -> Pack:
    index = path / INDEX
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        version = content["version"]
        folders, sidecars = list(content["folders"]), dict(content["sidecars"])
        shards = [(str(shard["file"]), int(shard["bytes"])) for shard in content["shards"]]
        files = (path / content["names"], path / content["entries"])
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{index}: expected the index of a pack, but it cannot be read ({type(error).__name__}: {error}); "
            "bring it back from a copy"
        ) from None
    if version != VERSION:
        raise FeatureError(f"{index}: version is {version!r}, this program reads {VERSION}; update the program")
    names, entries = (_open_part(file) for file in files)
    good = names.dtype.kind == "S" and names.ndim == 1 and entries.dtype == np.int64
    if not good or entries.shape != (len(names), len(folders), 3):
        raise FeatureError(
            f"{files[1]}: expected int64 [{len(names)}, {len(folders)}, 3] for the names of {files[0].name}, found "
            f"{entries.dtype} {list(entries.shape)}; the pack is damaged: bring both files back from a copy"
        )
    return Pack(path, folders, shards, sidecars, names, entries, (files[0].name, files[1].name))


def _open_part(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise FeatureError(
            f"{path}: expected an array of a pack's index, but it cannot be read ({reason}); bring it back from a copy"
        ) from None
