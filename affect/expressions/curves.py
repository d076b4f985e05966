"""Training curves: the four-panel picture, the raw numbers and the statistics table of every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

SMOOTHING = 100
"""Steps of the running mean over the loss."""
HD_EVERY = 5
"""Epochs between high-resolution pictures."""
_BY_STEP = ("steps", "lrs", "losses", "epochs", "paddings")
_BY_EPOCH = ("val_epochs", "val_losses")


class TrainingVisualizer:
    """Collects step, rate, loss and padding, and the validation loss; draws them at the end of each epoch."""

    def __init__(self, output_dir: str | Path, enabled: bool = True) -> None:
        """`output_dir` is the folder for pictures; nothing is written when not `enabled`."""
        self.folder, self.enabled = Path(output_dir), enabled
        self.steps: list[int] = []
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.epochs: list[int] = []
        self.paddings: list[float] = []
        self.val_epochs: list[int] = []
        self.val_losses: list[float] = []

    def record(self, step: int, lr: float, loss: float, epoch: int, padding: float = 0.0) -> None:
        """Note one iteration; epochs count from 1, padding is the share of the batch that is padding."""
        self.steps.append(step)
        self.lrs.append(lr)
        self.losses.append(loss)
        self.epochs.append(epoch)
        self.paddings.append(padding)

    def record_validation(self, epoch: int, loss: float) -> None:
        """Note the loss over the validation split after an epoch."""
        self.val_epochs.append(epoch)
        self.val_losses.append(loss)

    def epoch_mean(self, values: list[float], epoch: int) -> float:
        """Return the mean over one epoch's iterations of `losses` or `paddings`."""
        return float(np.mean([value for value, number in zip(values, self.epochs, strict=True) if number == epoch]))

    def end_epoch(self, epoch: int, last: bool = False) -> None:
        """Write picture and numbers of an epoch, a 300 dpi picture every fifth epoch and at the end."""
        if not self.enabled:
            return
        self.plot_and_save(f"_epoch{epoch}")
        if last or epoch % HD_EVERY == 0:
            self.plot_and_save(f"_hd_epoch{epoch}", dpi=300)
        self.save_data(self.folder / f"training_data_epoch{epoch}.npz")

    def plot_and_save(self, suffix: str = "", dpi: int = 150) -> Path:
        """Draw the four panels into training_curves{suffix}.png and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"training_curves{suffix}.png"
        figure, ((linear, log), (by_step, by_epoch)) = plt.subplots(2, 2, figsize=(13, 9))
        for axes, title in ((linear, "Learning rate"), (log, "Learning rate, logarithmic")):
            axes.plot(self.steps, self.lrs, color="tab:blue")
            axes.set(title=title, xlabel="step", ylabel="rate")
        log.set_yscale("log")
        by_step.plot(self.steps, self.losses, color="tab:gray", alpha=0.4, linewidth=0.8, label="loss")
        by_step.plot(self.steps, smoothed(self.losses), color="tab:red", label=f"mean over {SMOOTHING} steps")
        by_step.set(title="Loss by step", xlabel="step", ylabel="loss")
        by_step.legend()
        epochs, means, deviations = self.by_epoch()
        by_epoch.errorbar(epochs, means, deviations, marker="o", capsize=4, color="tab:green", label="training")
        if self.val_epochs:
            by_epoch.plot(self.val_epochs, self.val_losses, marker="s", color="tab:orange", label="validation")
        by_epoch.set(title="Loss by epoch, mean and deviation", xlabel="epoch", ylabel="loss")
        by_epoch.legend()
        by_epoch.xaxis.get_major_locator().set_params(integer=True)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, dpi=dpi)
        plt.close(figure)
        return path

    def by_epoch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return epochs [E], their mean losses [E] and standard deviations [E]."""
        losses, epochs = np.array(self.losses), np.array(self.epochs)
        numbers = np.unique(epochs)
        groups = [losses[epochs == number] for number in numbers]
        return numbers, np.array([g.mean() for g in groups]), np.array([g.std() for g in groups])

    def statistics(self) -> Table:
        """Return the table of steps, rates and losses so far."""
        best = int(np.argmin(self.losses))
        table = Table(title="Training statistics", show_header=False)
        for name, value in (
            ("Total steps", f"{len(self.steps):,}"),
            ("Current epoch", str(self.epochs[-1])),
            ("Current learning rate", f"{self.lrs[-1]:.2e}"),
            ("Latest loss", f"{self.losses[-1]:.6f}"),
            (f"Recent {SMOOTHING} avg loss", f"{np.mean(self.losses[-SMOOTHING:]):.6f}"),
            ("Best loss", f"{self.losses[best]:.6f} (step {self.steps[best]})"),
            ("Max learning rate", f"{max(self.lrs):.2e}"),
            ("Min learning rate", f"{min(self.lrs):.2e}"),
            ("Padding, this epoch", f"{self.epoch_mean(self.paddings, self.epochs[-1]):.1%}"),
        ):
            table.add_row(name, value)
        return table

    def print_statistics(self) -> None:
        """Print the statistics table."""
        Console().print(self.statistics())

    def save_data(self, path: Path) -> None:
        """Write every list of numbers as an array."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every list of numbers as an array."""
        return {key: np.array(getattr(self, key)) for key in _BY_STEP + _BY_EPOCH}

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from the numbers that `arrays` returned (raises KeyError when one is missing)."""
        for key, values in {key: arrays[key].tolist() for key in _BY_STEP + _BY_EPOCH}.items():
            setattr(self, key, values)

    def load_data(self, path: str | Path) -> None:
        """Take the numbers of a file that `save_data` wrote (raises ValueError when it is none)."""
        try:
            with np.load(path, allow_pickle=False) as data:
                self.take(data)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: expected arrays {', '.join(_BY_STEP + _BY_EPOCH)} ({error})") from None


def smoothed(values: list[float], window: int = SMOOTHING) -> np.ndarray:
    """Return the mean of each value and the up to `window` - 1 before it: [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
