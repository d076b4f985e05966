"""metrics.jsonl: a line a step and a line an epoch, appended as they come; pictures are drawn from it.

step:  step, epoch, lr, loss and other means, padding, grad_norm, samples_per_s, tokens_per_s, memory_mib, mfu
epoch: epoch, step, lr, train_loss and other means, validation scores
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import torch

from affect.core.reading import json_lines
from affect.engine.checkpoint import TrainState
from affect.engine.step import StepReport

FILE = "metrics.jsonl"
PEAK_TFLOPS = {
    "H200": 989,
    "H100": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
}
"""Card -> operations a second that it does at best in 16 bits, dense, as its maker says."""


class Metrics:
    """The file in a run's folder, open at its end; on the main process only."""

    def __init__(self, folder: Path, checkpoint: Path | None = None, state: TrainState | None = None) -> None:
        """Begin anew, or after what a checkpoint's run wrote up to its state."""
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint is None or state is None:
            self.path.unlink(missing_ok=True)
        elif checkpoint.parent != folder and (checkpoint.parent / FILE).is_file():
            self.path.write_bytes((checkpoint.parent / FILE).read_bytes())
        if state and self.path.is_file():
            os.truncate(self.path, _end(self.path, state))
        self.handle = self.path.open("a", buffering=1)

    def write(self, numbers: dict[str, Any]) -> None:
        """Append a line."""
        kept = {key: value for key, value in numbers.items() if value is not None}
        self.handle.write(json.dumps(kept) + "\n")

    def flush(self) -> None:
        """Wait until all lines are on disk."""
        os.fsync(self.handle.fileno())

    def close(self) -> None:
        """Close the file."""
        self.handle.close()


def _end(path: Path, state: TrainState) -> int:
    """Return how many bytes of the file come before what followed a state; a line that was cut off is among that."""
    end = 0
    with path.open("rb") as handle:
        for line in handle:
            try:
                entry = json.loads(line)
                later = entry["epoch"] > state.epoch if "loss" not in entry else entry["step"] > state.step
            except (ValueError, TypeError, LookupError, RecursionError):
                break
            if later or not line.endswith(b"\n"):
                break
            end += len(line)
    return end


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of the steps and those of the epochs of a run."""
    lines = [line for _, line in json_lines(folder / FILE, "step", "epoch")]
    return [line for line in lines if "loss" in line], [line for line in lines if "loss" not in line]


def numbers_of(
    report: StepReport, step: int, epoch: int, rate: float, flops: float, device: torch.device
) -> dict[str, Any]:
    """Return the line of a step, whose batches took `flops` operations on a device."""
    size, seconds = report.size, report.seconds
    peak = peak_flops(device)
    return {
        "step": step,
        "epoch": epoch,
        "lr": rate,
        "loss": report.loss,
        **report.means,
        "padding": size.padding / size.cells if size.cells else None,
        "grad_norm": report.grad_norm,
        "samples_per_s": round(size.samples / seconds, 3),
        "tokens_per_s": round(size.tokens / seconds, 1) if size.tokens else None,
        "memory_mib": round(peak_memory(device), 1),
        "mfu": round(flops / seconds / peak, 4) if peak and flops else None,
    }


def peak_flops(device: torch.device) -> float:
    """Return the operations a second that a card does at best in 16 bits; 0 where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((1e12 * tflops for card, tflops in PEAK_TFLOPS.items() if card in name), 0.0)


def flops_per_token(model: torch.nn.Module) -> float:
    """Return about how many operations a step takes for a token: 4 a weight, 6 where the weight is trained.

    Forward 2, backward 2 for what comes before and 2 for the weight itself (Kaplan et al., 2020, arXiv:2001.08361).
    """
    return float(sum((6 if weight.requires_grad else 4) * weight.numel() for weight in model.parameters()))


def peak_memory(device: torch.device) -> float:
    """Return the most memory used so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
