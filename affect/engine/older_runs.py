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


def older_lines(checkpoint: Path) -> list[dict[str, Any]]:
    """Return what metrics.jsonl would hold, nothing for other runs (raises ValueError for a broken curves.npz)."""
    path = checkpoint / "curves.npz"
    if not path.is_file():
        return []
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


def state_of(checkpoint: Path, run: RunSettings) -> TrainState:
    """Return where a run was, older or not (raises ValueError where its steps of one batch would now have several)."""
    state, lines = read_state(checkpoint), older_lines(checkpoint)
    if not lines:
        return state
    if run.gradient_accumulation_steps > 1:
        raise ValueError(
            f"{checkpoint}: a step of this run was one batch and would now be gradient_accumulation_steps "
            f"{run.gradient_accumulation_steps} of them; begin anew in another run.output_dir, with model.ckpt for its "
            "weights"
        )
    begun = [line for line in lines if line["epoch"] == state.epoch + 1]
    sums = {key: sum(line[key] for line in begun) for key in ("loss", "padding")} if begun else {}
    history = [line for line in lines if "val_loss" in line]
    return replace(state, sums=sums and {"steps": len(begun), **sums}, history=history)
