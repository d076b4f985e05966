"""The folder of a run: its name, and whether what lies there is the same run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FoundRun:
    """A run that is in a folder already."""

    differing: list[str]
    """Keys in which its configuration differs from the one at hand."""
    finished: bool


def choose_folder(name: str, output_dir: str | None, look: Callable[[Path], FoundRun | None]) -> Path:
    """Return the folder of a run: `output_dir`, or output/{name}/{name}_{YYYYmmddHHMM}.

    Without `output_dir` the newest unfinished run there with the same configuration goes on; a finished or
    different one is left alone. look: folder -> the run in it, if any. Raises ValueError when `output_dir`
    holds a run of another configuration.
    """
    if output_dir:
        folder = Path(output_dir)
        found = look(folder)
        if found and found.differing:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(found.differing)}); "
                "give another run.output_dir, or remove that folder"
            )
        return folder
    root = Path("output") / name
    for folder in sorted(root.glob(f"{name}_*"), reverse=True):
        found = look(folder)
        if found and not found.finished and not found.differing:
            return folder
    folder = new = root / f"{name}_{datetime.now():%Y%m%d%H%M}"
    number = 1
    while new.exists():  # two runs of one minute
        number += 1
        new = folder.with_name(f"{folder.name}_{number}")
    return new


def differing_keys(here: dict[str, Any], there: dict[str, Any], passing: Collection[str]) -> list[str]:
    """Return the keys (section.key) in which two configurations differ, those of the run section in `passing` aside."""
    keys = []
    for section in here:
        for key in sorted(here[section].keys() | there[section].keys()):
            may_change = section == "run" and key in passing
            if not may_change and here[section].get(key) != there[section].get(key):
                keys.append(f"{section}.{key}")
    return keys
