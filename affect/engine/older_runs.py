"""Runs of AffectGPT whose checkpoints have curves.npz: their numbers become lines of metrics.jsonl and a state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.config import RunSettings
from affect.engine.checkpoint import TrainState, read_state

_KEYS = {"steps": "step", "epochs": "epoch", "lrs": "lr", "losses": "loss", "paddings": "padding"}
"""Array -> key of a step; steps counted from 0."""


def is_older(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is of such a run."""
    return (checkpoint / "curves.npz").is_file()


def older_lines(checkpoint: Path) -> list[dict[str, Any]]:
    """Return what metrics.jsonl would hold (raises ValueError where curves.npz cannot be read)."""
    path = checkpoint / "curves.npz"
    try:
        with np.load(path, allow_pickle=False) as data:
            columns = {key: data[name].tolist() for name, key in _KEYS.items()}
            scores = dict(zip(data["val_epochs"].tolist(), data["val_losses"].tolist(), strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected arrays {', '.join(_KEYS)}, val_epochs, val_losses ({error})") from None
    lines: list[dict[str, Any]] = []
    for values in zip(*columns.values(), strict=True):
        lines.append(dict(zip(columns, values, strict=True)))
        lines[-1]["step"] += 1
    ends = {line["epoch"]: place + 1 for place, line in enumerate(lines)}
    for epoch in sorted(scores, reverse=True):
        lines.insert(ends[epoch], {"epoch": epoch, "step": lines[ends[epoch] - 1]["step"], "val_loss": scores[epoch]})
    return lines


def older_state(checkpoint: Path, run: RunSettings) -> TrainState | None:
    """Return where such a run was, None where it is no such run.

    Raises ValueError where its steps, each of one batch, would now be steps of several.
    """
    if not is_older(checkpoint):
        return None
    if run.gradient_accumulation_steps > 1:
        raise ValueError(
            f"{checkpoint}: a step of this run was one batch and would now be gradient_accumulation_steps "
            f"{run.gradient_accumulation_steps} of them; begin anew in another run.output_dir, with model.ckpt for its "
            "weights"
        )
    state, lines = read_state(checkpoint), older_lines(checkpoint)
    begun = [line for line in lines if line["epoch"] == state.epoch + 1]
    sums = {key: sum(line[key] for line in begun) for key in ("loss", "padding")} if begun else {}
    history = [line for line in lines if "val_loss" in line]
    return replace(state, sums=sums and {"steps": len(begun), **sums}, history=history)
