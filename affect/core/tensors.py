"""Tensors that others saved: pickles of which nothing is run, and safetensors."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from affect.core.reading import reading

_ADVICE = "copy it again"
LONGEST_TEXT = 10_000


def read_pickled(
    path: str | Path,
    expected: str,
    kind: type[ValueError] = ValueError,
    inert: Sequence[Callable | tuple[Callable, str]] = (),
) -> Any:
    """Return what torch.save wrote, on the CPU (raises `kind` in one sentence for anything but plain values).

    inert: what stands for classes that the file names and that are of no use.
    """
    with reading(path, expected, _ADVICE, kind), torch.serialization.safe_globals(list(inert)):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # nothing in it is compressed
                if sum(member.file_size for member in archive.infolist()) > Path(path).stat().st_size:
                    raise ValueError("its parts claim to be larger than the file")
        if (
            longest := _longest_text(Path(path))
        ) > LONGEST_TEXT:  # on which torch's search for its advice takes minutes
            raise ValueError(f"{path}: expected texts of at most {LONGEST_TEXT:,} characters, found {longest:,}")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise ValueError(
                    f"{path}: expected {expected}, found an object of {found[1]}, which is not read since it may run "
                    "code; where the file was written, load it and save the tensors alone"
                ) from None
            raise ValueError("no file of torch.save, or one that is cut off") from None


def _longest_text(path: Path) -> int:
    """Return the characters of the longest text in the pickles of a file, as far as they are some."""
    longest, zipped = 0, zipfile.is_zipfile(path)
    with zipfile.ZipFile(path) if zipped else path.open("rb") as file, suppress(ValueError, IndexError):
        # old files begin with two numbers, the machine, the content and its keys
        names = [name for name in file.namelist() if name.endswith(".pkl")] if zipped else []
        parts = [io.BytesIO(file.read(name)) for name in names] if zipped else 5 * [file]
        for part in parts:
            for _, text, _ in genops(part):
                longest = max(longest, len(text) if isinstance(text, str) else 0)
    return longest


def read_tensors(path: str | Path, expected: str, kind: type[ValueError] = ValueError) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file (raises `kind` in one sentence)."""
    with reading(path, expected, _ADVICE, kind):
        return load_file(path)
