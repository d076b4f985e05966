"""Packed features: the .npy files of a data set as records of one LMDB environment, `{root}/{dataset}/packed/data.mdb`.

    NUL               JSON: feature folders with what their sidecars said, and the sum of the hashes of the keys below
    NUL {clip}        where in the file most of the clip's arrays lie, and the folders that they come from
    {clip}/{folder}   the bytes of a .npy file

Every record begins with the XXH3 of its key and bytes, and every read checks it. Arrays were found finite,
floating-point and, for action units, of rows of length 1 when they were packed (`affect.features.packing`), so readers
need not look again. The pages of LMDB's tree have no checksum: a file that is cut or has lost its first pages is
refused when it is opened, but other damage to the tree may end the process.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import lmdb
import numpy as np
from xxhash import xxh3_64_intdigest

from affect.core.reading import reading
from affect.features.arrays import FeatureError, as_rows, parse_npy

PACKED, DATA = "packed", "data.mdb"
_CLIPS = b"\0"  # no clip's name has it
_SEAL = struct.Struct("<Q")
_PLACE = struct.Struct("<QI")
_LONGEST_KEY = 511  # LMDB's own limit
_SPACE = 1 << 40  # addresses that a writer takes, not memory; readers take those of the file
_MOST_OPEN = 32
_DAMAGED = "the packed features are damaged: bring them back from a copy"
T = TypeVar("T")


@dataclass
class Head:
    """What the first record says of the others."""

    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Feature folder -> its sidecar when it was packed, empty where it had none."""
    key_sum: int = 0


@dataclass
class _Opened:
    env: lmdb.Environment
    head: Head
    transaction: int
    """The last one that wrote to it."""
    file: BinaryIO
    clip: str = ""
    """The one that the disk was asked for last."""
    whole: bool = False
    """Whether no clip was found to be lost."""


_opened: dict[str, _Opened] = {}
"""Folder -> its environment. LMDB opens one once a process, so all stores share it; a forked process inherits it."""
_lock = threading.RLock()
"""Held while records are looked at, so that no thread closes an environment that another one reads."""
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True)
class Packed:
    """The packed features in a folder, as they are on disk at each call; there may be none.

    All methods raise FeatureError, naming where, for damage and for what earlier versions packed.
    """

    path: str

    def read(self, folder: str, name: str, dim: int) -> np.ndarray | None:
        """Return an array as float32 [T, dim] of the caller's own, or None where it is not packed."""
        return self._look(self._read, None, folder, name, dim)

    def _read(self, txn: lmdb.Transaction, opened: _Opened, folder: str, name: str, dim: int) -> np.ndarray | None:
        if name != opened.clip:
            _fetch(txn, opened, name)
        where = f"{self.path}: {folder}/{name}.npy"
        content = find(txn, array_key(name, folder), where)
        if content is not None:
            return as_rows(parse_npy(content, where), dim, where).astype(np.float32, copy=False)
        if folder in self._folders_of(txn, opened, name):
            raise FeatureError(f"{where}: expected an array, found none; {_DAMAGED}")
        return None

    def holds(self, folder: str, names: Sequence[str]) -> list[bool]:
        """Return which of the clips have an array in a folder."""
        held = self._look(lambda *opened: [folder in self._folders_of(*opened, name) for name in names], None)
        return [False] * len(names) if held is None else held

    def names(self) -> set[str]:
        """Return every clip that has an array."""
        return self._look(lambda txn, _: set(clips(txn, self.path)), set())

    def folders(self) -> dict[str, dict[str, Any]]:
        """Return the feature folders that arrays come from and their sidecars, empty where there was none."""
        return self._look(lambda _, opened: opened.head.folders, {})

    def close(self) -> None:
        """Close the environment if this process has it open."""
        with _lock:
            if opened := _opened.pop(self.path, None):
                opened.env.close()
                opened.file.close()

    def _look(self, use: Callable[..., T], default: T, *arguments: object) -> T:
        """Call a function with a transaction, the environment that is there now and some arguments."""
        asked = "/".join(map(str, arguments[:2])) or "what is packed"
        with _lock, reading(self.path, asked, _DAMAGED, FeatureError):
            opened = _opened.get(self.path) or self._open()
            if opened is None:
                return default
            with suppress(lmdb.MapResizedError), opened.env.begin(buffers=True) as txn:
                if txn.id() == opened.transaction:
                    return use(txn, opened, *arguments)
            self.close()  # it was added to or, after all was unpacked, removed
            return self._look(use, default, *arguments)

    def _open(self) -> _Opened | None:
        file = Path(self.path, DATA)
        if not file.exists():
            refuse_old(self.path)
            return None
        if len(_opened) >= _MOST_OPEN:
            Packed(next(iter(_opened))).close()
        env = open_environment(self.path, readonly=True)
        with env.begin(buffers=True) as txn:
            opened = _opened[self.path] = _Opened(env, read_head(txn, self.path), txn.id(), file.open("rb"))
        return opened

    def _folders_of(self, txn: lmdb.Transaction, opened: _Opened, name: str) -> list[str]:
        found = folders_of(txn, name, self.path)
        if not found and not opened.whole:  # once: what is lost must not look like what was never made
            opened.whole = all(clips(txn, self.path))
        return found


def open_environment(path: str, readonly: bool) -> lmdb.Environment:
    """Open packed features without LMDB's own locks: read-only disks have no place for them, writers have another."""
    refuse_old(path)
    found = Path(path, DATA).stat().st_size
    if readonly and not found:
        raise FeatureError(f"{path}/{DATA}: is empty; bring it back from a copy, or pack again if packing was stopped")
    space = 1 if readonly else _SPACE
    env = lmdb.open(path, map_size=space, readonly=readonly, lock=False, create=False, readahead=False)
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if 0 < found < expected:
        env.close()
        raise FeatureError(f"{path}/{DATA}: expected at least {expected} bytes, found {found}; {_DAMAGED}")
    return env


def refuse_old(path: str) -> None:
    """Raise FeatureError where an earlier version has packed features."""
    if os.access(f"{path}/index.json", os.F_OK):
        raise FeatureError(
            f"{path}: expected {DATA}, found what an earlier version packed; unpack it with the version that made it "
            "(tools/pack_features.py --unpack), then pack the files with this one"
        )


def read_head(txn: lmdb.Transaction, path: str) -> Head:
    """Return what the first record says; where there is no record at all, nothing is packed."""
    content = find(txn, _CLIPS, f"{path}/{DATA}")
    if content is None and txn.stat()["entries"]:
        raise FeatureError(f"{path}/{DATA}: expected the record that tells of the others, found none; {_DAMAGED}")
    return Head() if content is None else Head(**json.loads(bytes(content)))


def write_head(txn: lmdb.Transaction, head: Head) -> None:
    """Say what is packed; when that is nothing, no record is left."""
    put(txn, _CLIPS, json.dumps(asdict(head)).encode() if head.folders else b"")


def folders_of(txn: lmdb.Transaction, name: str, path: str) -> list[str]:
    """Return the feature folders that arrays of a clip come from."""
    content = find(txn, _CLIPS + os.fsencode(name), f"{path}: clip {name!r}")
    return [] if content is None else bytes(content[_PLACE.size :]).decode().split("/")


def set_clip(txn: lmdb.Transaction, head: Head, name: str, folders: list[str], place: tuple[int, int] = (0, 0)) -> None:
    """Say which arrays of a clip are packed, if any, and where most of them lie: first byte and number of bytes."""
    key = _CLIPS + os.fsencode(name)
    old = txn.get(key)
    if old:
        place = max(place, _PLACE.unpack_from(old, _SEAL.size), key=itemgetter(1))
    head.key_sum += xxh3_64_intdigest(key) * (bool(folders) - bool(old))
    put(txn, key, _PLACE.pack(*place) + "/".join(folders).encode() if folders else b"")


def _fetch(txn: lmdb.Transaction, opened: _Opened, name: str) -> None:
    """Ask the disk for the arrays of a clip at once; LMDB by itself waits for every page, or reads megabytes ahead."""
    opened.clip = name
    content = find(txn, _CLIPS + os.fsencode(name), name)
    if content is not None:
        offset, size = _PLACE.unpack_from(content)
        if size:
            os.posix_fadvise(opened.file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)


def clips(txn: lmdb.Transaction, path: str) -> Iterator[str]:
    """Yield every clip that has an array (raises FeatureError at the end where some are lost)."""
    left, cursor = read_head(txn, path).key_sum, txn.cursor()
    cursor.set_range(_CLIPS + b"\1")
    for key in map(bytes, cursor.iternext(values=False)):
        if not key.startswith(_CLIPS):
            break
        left -= xxh3_64_intdigest(key)
        yield os.fsdecode(key[1:])
    if left:
        raise FeatureError(f"{path}/{DATA}: expected the names that were packed, found others; {_DAMAGED}")


def array_key(name: str, folder: str) -> bytes:
    """Return the key of an array."""
    return os.fsencode(f"{name}/{folder}")


def find(txn: lmdb.Transaction, key: bytes, where: str) -> memoryview | None:
    """Return a copy of what was put under a key, or None where nothing was.

    Raises FeatureError, naming `where`, when it is not what was put there.
    """
    record = txn.get(key) if len(key) <= _LONGEST_KEY else None
    if record is None:
        return None
    content = memoryview(bytearray(record))[_SEAL.size :]
    if len(record) < _SEAL.size or _SEAL.unpack_from(record)[0] != _checksum(key, content):
        raise FeatureError(f"{where}: expected the bytes that were packed, found others; {_DAMAGED}")
    return content


def put(txn: lmdb.Transaction, key: bytes, content: bytes | bytearray) -> None:
    """Put bytes under a key; none take it away."""
    if content:
        txn.put(key, sealed(key, content))
    else:
        txn.delete(key)


def sealed(key: bytes, content: bytes | bytearray) -> bytes:
    """Return the record of some bytes."""
    return _SEAL.pack(_checksum(key, content)) + content


def _checksum(key: bytes, content: bytes | bytearray | memoryview) -> int:
    return xxh3_64_intdigest(content, xxh3_64_intdigest(key))
