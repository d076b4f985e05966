"""Going on: resume.pt with all that a run's next step depends on, and which folder a run belongs to."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import yaml

from affect.core.files import atomic_write
from affect.expressions.config import FerConfig, load_fer_config, parse_fer_config
from affect.expressions.history import Entry, end_reason, read_history, watched
from affect.expressions.run_folder import FoundRun, choose_folder, differing_keys

logger = logging.getLogger(__name__)

FORMAT = "affect-fer-resume-1"
_PASSING_KEYS = frozenset(["device", "log_every", "num_workers", "output_dir", "resume", "save_every", "trackers"])
"""Keys of the run section that may change when a run goes on."""


@dataclass(frozen=True)
class RunState:
    """Where a run is."""

    config: FerConfig
    step: int
    """Moves of the weights so far."""
    history: list[Entry]
    """Epochs completed."""
    accuracies: list[float]
    """Training accuracy of each step since."""
    curves: dict[str, np.ndarray]
    trainer: dict[str, Any]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Split -> images that could not be read when the run began."""


def save_state(path: Path, state: RunState) -> None:
    """Write a state whole or not at all (raises OSError, as where the disk is full)."""
    content = {
        "format": FORMAT,
        "config": state.config.model_dump(mode="json"),
        "step": state.step,
        "history": state.history,
        "accuracies": state.accuracies,
        "curves": {key: torch.from_numpy(values) for key, values in state.curves.items()},
        "trainer": state.trainer,
        "left_out": state.left_out,
    }
    with atomic_write(path, writer="partial") as handle:
        try:
            torch.save(content, handle)
        except (OSError, RuntimeError) as error:  # the latter is torch's word for a disk that is full
            raise OSError(f"{path}: the state cannot be written ({error}); is the disk full?") from None


def load_state(path: Path) -> RunState:
    """Return the state in a file (raises ValueError when it is none, or cut off)."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        content["config"] = parse_fer_config(content["config"], str(path))
        content["curves"] = {key: values.numpy() for key, values in content["curves"].items()}
        return RunState(**content)
    except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: expected the state of a run of the image track, but it cannot be read ({reason})"
        ) from None


def save_fer_config(config: FerConfig, path: Path) -> None:
    """Write the resolved configuration, every default included, as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with atomic_write(path) as handle:
        handle.write(text.encode())


def run_folder(config: FerConfig, cfg_path: str | Path) -> tuple[Path, Path | None, str]:
    """Return the folder of a run, the state that it goes on from, if any, and why it is over if it is.

    The folder is named and refused as affect.engine.run_folder.choose_folder says. `run.resume` gives the state
    where the folder has none of its own: a run that had gone on from there and was stopped goes on from its own.
    """
    folder = choose_folder(Path(cfg_path).stem, config.run.output_dir, lambda folder: _look(folder, config))
    own = folder / "resume.pt"
    if own.is_file():
        history = read_history(folder / "history.json")
        return folder, own, end_reason(history, config.run, watched(config.multi_label))
    return folder, _asked(config.run.resume), ""


def _asked(resume: str | None) -> Path | None:
    """Return the state that run.resume names, by itself or by its folder (raises ValueError where there is none)."""
    if resume is None:
        return None
    path = Path(resume) / "resume.pt" if Path(resume).is_dir() else Path(resume)
    if not path.is_file():
        raise ValueError(f"run.resume: expected a run's folder or its resume.pt, found no file {path}")
    return path


def _look(folder: Path, config: FerConfig) -> FoundRun | None:
    """Return the run in a folder, compared with a configuration; None where none has got as far as a state."""
    if not (folder / "resume.pt").is_file():
        return None
    there = load_fer_config(folder / "config.yaml")
    differing = differing_keys(*(c.model_dump(exclude={"task", "predict"}) for c in (config, there)), _PASSING_KEYS)
    history = read_history(folder / "history.json")
    return FoundRun(differing, bool(end_reason(history, there.run, watched(there.multi_label))))
