"""The device that a configuration names, and the memory of the processor."""

from __future__ import annotations

import ctypes
import os
import re

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of settings in glibc's malloc.h."""


def pick_device(name: str, key: str = "run.device") -> torch.device:
    """Return the device of `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:<index>`.

    `cuda` without a GPU is the CPU, so that one file serves both; an index means that very GPU.
    Raises ValueError naming `key` for any other word and for an index that does not exist.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d+))?", name)
    if not match or (match[2] and match[1] != "cuda"):
        raise ValueError(f"{key}: expected auto, cpu, cuda or cuda:<index>, found {name!r}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if match[2]:
        if int(match[2]) >= gpus:
            there = f"cuda:0 to cuda:{gpus - 1}" if gpus else "no GPU"
            raise ValueError(f"{key}: {name} does not exist, this machine has {there}; set one of those, auto or cpu")
        return torch.device("cuda", int(match[2]))
    return torch.device("cuda" if gpus and match[1] != "cpu" else "cpu")


def half_precision() -> torch.dtype:
    """Return what this process's GPU computes half as wide in: bfloat16, or float16 where it would emulate that."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def model_precision(device: str | torch.device) -> torch.dtype:
    """Return what a language model answers in on a device: bfloat16 on a GPU that has it, else float32."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.bfloat16 if on_gpu and half_precision() == torch.bfloat16 else torch.float32


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed arrays for the next ones.

    glibc gives large ones back to the system, which clears the pages anew for every layer of a network: on
    two cores that is a seventh of the time of IR-50. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
