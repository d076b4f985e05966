"""Training curves, drawn from metrics.jsonl: the four-panel picture, the raw numbers and the statistics table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from affect.core.plots import new_figure, save_figure, whole_numbers
from affect.engine.metrics import read_metrics

SMOOTHING = 100
"""Steps of the running mean over the loss."""
HD_EVERY = 5
"""Epochs between high-resolution pictures."""
LONG_EPOCH = 100
"""Steps of an epoch from which on curves are drawn after each; drawing takes as long as a short one."""


def draw_epoch(run_folder: Path, epoch: int, per_epoch: int, last: bool = False) -> None:
    """Draw training_curves/ after an epoch, every fifth one and the last at 300 dpi; print the statistics.

    After short epochs that is done only every fifth time. The last one has the numbers as arrays, too.
    """
    if not last and per_epoch < LONG_EPOCH and epoch % HD_EVERY:
        return
    steps, epochs = read_metrics(run_folder)
    folder = run_folder / "training_curves"
    draw_curves(folder / f"training_curves_epoch{epoch}.png", steps, epochs)
    if last or epoch % HD_EVERY == 0:
        draw_curves(folder / f"training_curves_hd_epoch{epoch}.png", steps, epochs, dpi=300)
    if last:
        np.savez(folder / "training_data.npz", **arrays(steps, epochs))
    Console().print(statistics(steps))


def draw_curves(path: Path, steps: list[dict[str, Any]], epochs: list[dict[str, Any]], dpi: int = 150) -> None:
    """Draw rate, loss by step, and loss by epoch with the validation's."""
    numbers = arrays(steps, epochs)
    figure, ((linear, log), (by_step, by_epoch)) = new_figure((13, 9), 2, 2)
    for axes, title in ((linear, "Learning rate"), (log, "Learning rate, logarithmic")):
        axes.plot(numbers["steps"], numbers["lrs"], color="tab:blue")
        axes.set(title=title, xlabel="step", ylabel="rate")
    log.set_yscale("log")
    by_step.plot(numbers["steps"], numbers["losses"], color="tab:gray", alpha=0.4, linewidth=0.8, label="loss")
    by_step.plot(numbers["steps"], smoothed(numbers["losses"]), color="tab:red", label=f"mean over {SMOOTHING} steps")
    by_step.set(title="Loss by step", xlabel="step", ylabel="loss")
    by_step.legend()
    by_epoch.errorbar(*loss_by_epoch(numbers), marker="o", capsize=4, color="tab:green", label="training")
    if len(numbers["val_epochs"]):
        by_epoch.plot(numbers["val_epochs"], numbers["val_losses"], marker="s", color="tab:orange", label="validation")
    by_epoch.set(title="Loss by epoch, mean and deviation", xlabel="epoch", ylabel="loss")
    by_epoch.legend()
    whole_numbers(by_epoch)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path, dpi)


def arrays(steps: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the numbers that are drawn, each as an array."""
    validated = [entry for entry in epochs if entry.get("val_loss") is not None]
    return {
        "steps": np.array([entry["step"] for entry in steps]),
        "lrs": np.array([entry["lr"] for entry in steps]),
        "losses": np.array([entry["loss"] for entry in steps]),
        "epochs": np.array([entry["epoch"] for entry in steps]),
        "paddings": np.array([entry.get("padding", 0.0) for entry in steps]),
        "val_epochs": np.array([entry["epoch"] for entry in validated]),
        "val_losses": np.array([entry["val_loss"] for entry in validated]),
    }


def loss_by_epoch(numbers: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return epochs [E], their mean losses [E] and standard deviations [E]."""
    epochs = np.unique(numbers["epochs"])
    groups = [numbers["losses"][numbers["epochs"] == epoch] for epoch in epochs]
    return epochs, np.array([g.mean() for g in groups]), np.array([g.std() for g in groups])


def statistics(steps: list[dict[str, Any]]) -> Table:
    """Return the table of steps, rates and losses so far."""
    losses, rates = [entry["loss"] for entry in steps], [entry["lr"] for entry in steps]
    best = int(np.argmin(losses))
    paddings = [entry["padding"] for entry in steps if entry["epoch"] == steps[-1]["epoch"] and "padding" in entry]
    table = Table(title="Training statistics", show_header=False)
    for name, value in (
        ("Total steps", f"{len(steps):,}"),
        ("Current epoch", str(steps[-1]["epoch"])),
        ("Current learning rate", f"{rates[-1]:.2e}"),
        ("Latest loss", f"{losses[-1]:.6f}"),
        (f"Recent {SMOOTHING} avg loss", f"{np.mean(losses[-SMOOTHING:]):.6f}"),
        ("Best loss", f"{losses[best]:.6f} (step {steps[best]['step']})"),
        ("Max learning rate", f"{max(rates):.2e}"),
        ("Min learning rate", f"{min(rates):.2e}"),
        ("Padding, this epoch", f"{np.mean(paddings):.1%}" if paddings else "none"),
    ):
        table.add_row(name, value)
    return table


def smoothed(values: np.ndarray, window: int = SMOOTHING) -> np.ndarray:
    """Return the mean of each value and the up to `window` - 1 before it: [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
