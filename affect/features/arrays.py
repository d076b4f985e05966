"""Feature arrays as bytes of a .npy file: reading them quickly and refusing what no run may use."""

from __future__ import annotations

import io
import os
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np

from affect.core.reading import reading, require_memory

_EXPECTED, _ADVICE = "one plain .npy array", "extract it anew"


class FeatureError(ValueError):
    """A feature that is missing, unreadable or not what the run expects."""


def read_array(path: str | Path, dim: int) -> np.ndarray:
    """Return an array file as finite float32 [T, dim]; a vector [dim] counts as one row.

    Raises FeatureError for anything else, pickled files included.
    """
    array = as_rows(parse_npy(read_bytes(path), str(path)), dim, str(path))
    check_finite(array, str(path))
    return array.astype(np.float32, copy=False)


def read_bytes(path: str | Path) -> bytearray:
    """Return a whole file (raises FeatureError where it cannot be read)."""
    with reading(path, _EXPECTED, _ADVICE, FeatureError), io.FileIO(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        require_memory(size, path)
        content = bytearray(size)
        del content[handle.readinto(content) :]
        return content


def parse_npy(content: bytearray | memoryview, where: str) -> np.ndarray:
    """Return the array that the bytes of a .npy file hold, as a view of them.

    Raises FeatureError naming `where` for cut files, archives, pickles and other content.
    """
    with reading(where, _EXPECTED, _ADVICE, FeatureError):
        if bytes(content[:4]) == b"PK\x03\x04":
            raise ValueError("it is an archive")
        # the format is described in numpy.lib.format: magic and version, length of the header, header, numbers
        start = 10 + content[8] + (content[9] << 8) if content[6] == 1 else 12 + struct.unpack_from("<I", content, 8)[0]
        dtype, shape, order = _parse_header(bytes(content[:start]))
        return np.ndarray(shape, dtype, content, start, order=order)


def as_rows(array: np.ndarray, dim: int, where: str) -> np.ndarray:
    """Return [T, dim] as it is and a vector [dim] as one row (raises FeatureError as `check_rows`)."""
    if array.ndim == 1 and array.shape[0] == dim:
        array = array[None]
    check_rows(array, dim, where)
    return array


def check_rows(array: np.ndarray, dim: int, where: str) -> None:
    """Raise FeatureError unless an array is floating-point [T, dim]."""
    if array.ndim != 2 or array.shape[1] != dim:
        raise FeatureError(
            f"{where}: expected shape [T, {dim}], found {list(array.shape)}; "
            "was another encoder used? extract these features anew or set the dimension in the config"
        )
    if array.dtype.kind != "f":
        raise FeatureError(f"{where}: expected floating-point numbers, found {array.dtype}; extract it anew")


def check_finite(array: np.ndarray, where: str) -> None:
    """Raise FeatureError where an array holds NaN or infinity, or what is infinity as float32."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        raise FeatureError(f"{where}: expected finite numbers, found NaN or infinity; extract it anew")


def check_unit_rows(array: np.ndarray, where: str) -> None:
    """Raise FeatureError unless the rows of [T, D] have length 1, as those of AU sentences must."""
    norms = np.linalg.norm(array.astype(np.float32, copy=False), axis=1)
    if np.any(np.abs(norms - 1) > 1e-2):
        raise FeatureError(f"{where}: expected rows of length 1, found {norms.min():.3f} to {norms.max():.3f}")


@lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], str]:
    """Return type, shape and order (C or F); arrays of one shape share their header, so few are ever parsed."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it is pickled, which is never loaded")
    return dtype, shape, "F" if columns_first else "C"
