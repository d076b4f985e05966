"""Labels kept as pickled dicts in .npz files, read without trusting them.

Public corpora keep name -> {emo: …, val: …} as an object array, which numpy reads with pickling only, and so with
whatever code the file brings. Here nothing that a file names is imported: the four names that arrays and numbers of
numpy are pickled under stand for parts of this module, every other name is refused, and numpy's own C code is handed
plain bytes of a checked type.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from affect.core.reading import reading, require_memory

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


def read_npz(path: str | Path) -> dict[str, Any]:
    """Return the arrays of an .npz file as lists, dicts, strings and numbers.

    Raises ValueError naming the file when there is none, or it is no .npz file, or it holds more than data.
    """
    expected = "an .npz file of plain values"
    with reading(path, expected, "get it anew"), zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        require_memory(8 * size, path)  # about what lists of them take
        return {name.removesuffix(".npy"): _read_array(archive.read(name)) for name in archive.namelist()}


def read_corpus(path: str | Path, key: str, corpora: Mapping[str, str]) -> dict[str, Any]:
    """Return clip -> its value `key` in the first of some corpora that a label file has.

    corpora: name of a corpus -> pattern of the clips that count. Raises ValueError when the file has none of them, or
    not that value of every clip.
    """
    with reading(path, f"{key!r} of every clip", "get it anew"):
        content = read_npz(path)
        name = next((name for name in corpora if isinstance(content.get(name), dict)), None)
        if name is None:
            raise ValueError(
                f"{path}: expected {' or '.join(corpora)} with {key!r} of every clip, found "
                f"{', '.join(content) or 'nothing'}; name a file, or choose a split, that is there"
            )
        for clip, told in content[name].items():
            if not isinstance(told, dict) or key not in told:
                raise ValueError(f"{path}: {name}: expected {key!r} of every clip, {clip!r} has none")
        return {str(clip): told[key] for clip, told in content[name].items() if re.fullmatch(corpora[name], str(clip))}


def _read_array(content: bytes) -> Any:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    rest = stream.read()
    if not dtype.hasobject:
        return _values(shape, dtype, fortran, rest)
    for code, number, _ in pickletools.genops(rest):  # which refuses lengths beyond the end
        if code.name in ("PUT", "LONG_BINPUT") and number > len(rest):
            raise pickle.UnpicklingError(f"it numbers {number} values")
    array = _DataUnpickler(io.BytesIO(rest)).load()
    if not isinstance(array, _Array):
        raise pickle.UnpicklingError("it holds no array")
    return array if shape else array[0]


def _values(shape: Sequence[int], dtype: np.dtype, fortran: bool, content: Any) -> Any:
    """Return the numbers or texts of an array as nested lists."""
    _require_some(shape, content)
    return np.ndarray(tuple(shape), dtype, content, order="F" if fortran else "C").tolist()


def _require_some(shape: Sequence[int], content: Any) -> None:
    """Raise ValueError for a shape of many empty texts or lists, which no content backs."""
    if math.prod(max(length, 1) for length in shape) > max(len(content), 1):
        raise ValueError(f"an array of shape {tuple(shape)} has {len(content)} bytes or values")


class _Type:
    """Stands for numpy.dtype: true and false, numbers, texts and objects of a fixed size."""

    def __init__(self, text: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r"[biufUS]\d{1,6}|O8?", text):
            raise pickle.UnpicklingError(f"it has values of type {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array(list):
    """Stands for numpy.ndarray: its values, as nested lists; an array of no dimensions is a list of its one value."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, fortran, content = state
        if kind.dtype.hasobject:
            _require_some(shape, content)
            objects = np.empty(len(content), dtype=object)
            for place, value in enumerate(content):
                objects[place] = value
            values = objects.reshape(shape).tolist()  # whose order is row after row, whatever the array's
        else:
            values = _values(shape, kind.dtype, fortran, content)
        self[:] = values if shape else [values]


def _reconstruct(kind: type, shape: Sequence[int], code: Any) -> _Array:
    """Stands for the function that makes the empty array which a pickle then fills."""
    return _Array()


def _scalar(kind: _Type, content: Any) -> Any:
    """Stands for the function that makes one number or text of numpy."""
    return content if kind.dtype.hasobject else _values((), kind.dtype, False, content)


class _DataUnpickler(pickle.Unpickler):
    """Reads values and their containers; imports nothing."""

    known: ClassVar = {"dtype": _Type, "ndarray": _Array, "_reconstruct": _reconstruct, "scalar": _scalar}

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY and name in self.known:
            return self.known[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
