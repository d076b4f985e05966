"""What became of a run, epoch by epoch; which epoch was the best and whether the run is over follow from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from affect.core.files import atomic_write
from affect.expressions.config import FerRunConfig

Entry = dict[str, Any]
"""epoch, step, lr, train_loss, train_acc and the validation scores val_loss, val_acc … (None where not a number)."""


def history_entry(epoch: int, step: int, numbers: dict[str, float]) -> Entry:
    """Return the entry of an epoch; JSON has no NaN, so it becomes None."""
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return {"epoch": epoch, "step": step, **finite}


def watched(multi_label: bool) -> str:
    """Return the score that the best epoch has most of: accuracy, or macro F1 where several classes may be true."""
    return "val_macro_f1" if multi_label else "val_acc"


def best_entry(history: list[Entry], score: str) -> Entry | None:
    """Return the first epoch with the highest score, None without any."""
    known = [entry for entry in history if entry[score] is not None]
    return max(known, key=lambda entry: entry[score]) if known else None


def end_reason(history: list[Entry], run: FerRunConfig, score: str) -> str:
    """Return why the run is over after these epochs, nothing where it is not."""
    if len(history) >= run.epochs:
        return "all epochs are done"
    best = best_entry(history, score)
    best_epoch = best["epoch"] if best else 0
    if run.patience and len(history) - best_epoch >= run.patience:
        return f"no better {score} than that of epoch {best_epoch} in {run.patience} epochs"
    return ""


def write_history(path: Path, history: list[Entry]) -> None:
    """Write a list with one entry an epoch."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(history, indent=1, allow_nan=False).encode())


def read_history(path: Path) -> list[Entry]:
    """Return the entries of history.json, none where there is no file (raises ValueError for anything else)."""
    if not path.is_file():
        return []
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
        if not all("epoch" in entry for entry in history):
            raise ValueError("an entry has no epoch")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected one entry an epoch ({error}); remove the run's folder") from None
    return history


def draw_scores(path: Path, history: list[Entry], score: str) -> Path:
    """Draw accuracy and macro F1 of each epoch, the best one by `score` marked; return the path."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    epochs = [entry["epoch"] for entry in history]
    for key in ("train_acc", "val_acc", "val_exact_match", "val_macro_f1"):
        if key in history[0]:
            values = [math.nan if entry[key] is None else entry[key] for entry in history]
            axes.plot(epochs, values, "o-", markersize=3, linewidth=1, label=key)
    if best := best_entry(history, score):
        label = f"best epoch {best['epoch']}: {best[score]:.1%}"
        axes.axvline(best["epoch"], color="black", linestyle=":", linewidth=1, label=label)
    axes.set(xlabel="epoch", ylabel="share", ylim=(0, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path
