"""The device that a configuration names."""

from __future__ import annotations

import re

import torch


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
