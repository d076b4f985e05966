"""Tensors that others saved: pickles of which nothing is run, and safetensors."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from affect.core.reading import reading

_ADVICE = "copy it again"


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
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise ValueError(
                    f"{path}: expected {expected}, found an object of {found[1]}, which is not read since it may run "
                    "code; where the file was written, load it and save the tensors alone"
                ) from None
            raise ValueError("no file of torch.save, or one that is cut off") from None


def read_tensors(path: str | Path, expected: str, kind: type[ValueError] = ValueError) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file (raises `kind` in one sentence)."""
    with reading(path, expected, _ADVICE, kind):
        return load_file(path)
