"""Checkpoints: a folder with the task's weights, the optimizer and where the run is, in plain JSON.

{run}/checkpoint_{epoch:06d}_loss_{mean loss:.3f}/                        after an epoch
{run}/checkpoint_{epoch:06d}_step_{step:09d}_loss_{mean loss:.3f}/       within the next one (save_every, or a stop)
    …                    the task's own files, e.g. fusion.safetensors and adapter/
    optimizer.pt         tensors only, read with weights_only
    trained.safetensors  with a moving average, which the task's files then hold: the weights themselves
    scaler.json          scale of float16 gradients, where there is one
    state.json           epoch, step, means, the scores of every epoch and the best one by them
    config.yaml          the resolved configuration
A folder is written under another name, flushed to disk and renamed when complete, so a half-written one is never
read; older ones are removed only then.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError

from affect.core.files import atomic_folder
from affect.core.reading import read_object, reading

_NAME = re.compile(r"checkpoint_(\d{6})(_step_\d{9})?_loss_(-?\d+\.\d{3}|nan)")

ALL_DONE = "all epochs are done"
"""Reason of a run that ended where its configuration says."""


@dataclass(frozen=True)
class TrainState:
    """Where a run is."""

    epoch: int
    """Epochs completed."""
    step: int
    """Steps completed."""
    loss: float
    """Mean loss of the last epoch, or so far of the one that was left."""
    finished: bool = False
    reason: str = ""
    """Why the run ended or was left."""
    val_loss: float | None = None
    """Validation loss after the last epoch."""
    best_epoch: int | None = None
    best_score: float | None = None
    """Epoch of the best validation score so far, and that score."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over the steps of the epoch that was left: of loss and other means, and of the steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an epoch: epoch, step, lr, train_loss and other means, validation scores (None: not a number)."""
    updates: int = 0
    """Updates of the moving average."""


_STATE = TypeAdapter(TrainState)


def save_checkpoint(
    run_folder: Path, state: TrainState, inside: bool, write: Callable[[Path], None], keep: int
) -> Path:
    """Write a checkpoint whole or not at all, drop those that are no longer wanted, return its folder.

    inside: whether the state is within an epoch; write: fills a folder. Kept are the last `keep`, the best one by
    validation score, and one within an epoch until that epoch ends. Raises OSError where it cannot be written.
    """
    stem = f"checkpoint_{state.epoch:06d}" + (f"_step_{state.step:09d}" if inside else "")
    folder = run_folder / f"{stem}_loss_{state.loss:.3f}"
    if folder in list_checkpoints(run_folder):  # the one that the run went on from, and it made no step since
        return folder
    for left in run_folder.glob(".checkpoint_*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # half removed by an earlier version
    try:
        with atomic_folder(folder) as temporary:
            write(temporary)
            (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1))
    except (OSError, RuntimeError, SafetensorError) as error:  # all are words for a disk that is full
        raise _not_written(run_folder, "the checkpoint", error) from None
    whole = list_checkpoints(run_folder, whole_epochs=True)
    best = [path for path in whole if epoch_of(path) == state.best_epoch]
    for path in list_checkpoints(run_folder):
        if path != folder and (path not in (*whole[-keep:], *best) or path.name.startswith(f"{stem}_loss_")):
            _drop(path)
    return folder


@contextmanager
def full_disk_told(run_folder: Path) -> Iterator[None]:
    """Say in one sentence what is left of a run that the disk has no room for (raises OSError)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _not_written(run_folder, "what comes of the run", error) from None


def _not_written(run_folder: Path, what: str, error: Exception) -> OSError:
    last = (list_checkpoints(run_folder) or [None])[-1]
    kept = f"the last one, {last.name}, is whole, and the same command goes on from it" if last else "none was written"
    reason = " ".join(str(error).split())
    return OSError(f"{run_folder}: {what} cannot be written ({reason}); is the disk full? Of checkpoints {kept}")


def _drop(checkpoint: Path) -> None:
    """Remove a checkpoint; half removed, it is none any more."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def list_checkpoints(run_folder: Path, whole_epochs: bool = False) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first; with `whole_epochs`, none that was left within one."""
    if not run_folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in run_folder.iterdir() if (path / "state.json").is_file())
    return sorted(path for match, path in matches if match and not (whole_epochs and match[2]))


def epoch_of(checkpoint: Path) -> int:
    """Return how many epochs were completed at a checkpoint, from its name."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def find_checkpoint(root: str | Path, name: str | None = None, epoch: int | None = None) -> Path:
    """Return one checkpoint below `root`: a checkpoint folder itself, a run's folder, or a folder of runs.

    name: run to take below `root` (default: the newest run that has a checkpoint); epoch: which of
    its checkpoints (default: the last). Raises ValueError saying what was found when there is none.
    """
    root = Path(root) / name if name else Path(root)
    if _NAME.fullmatch(root.name) and root.is_dir():
        return root
    runs = sorted((path for path in root.iterdir() if list_checkpoints(path)), key=_newest) if root.is_dir() else []
    checkpoints = list_checkpoints(root) or (list_checkpoints(runs[-1]) if runs else [])
    if not checkpoints:
        raise ValueError(f"{root}: expected a checkpoint folder, a run or a folder of runs; found no checkpoint there")
    if epoch is None:
        return checkpoints[-1]
    whole = list_checkpoints(checkpoints[0].parent, whole_epochs=True)
    by_epoch = {epoch_of(checkpoint): checkpoint for checkpoint in whole}
    if epoch in by_epoch:
        return by_epoch[epoch]
    epochs = ", ".join(map(str, by_epoch)) or "none that was completed"
    raise ValueError(f"{checkpoints[0].parent}: expected a checkpoint of epoch {epoch}, found epochs {epochs}")


def _newest(run: Path) -> float:
    return list_checkpoints(run)[-1].stat().st_mtime


def read_state(checkpoint: Path) -> TrainState:
    """Return where the run was at a checkpoint (raises ValueError when state.json is not readable)."""
    path, expected = checkpoint / "state.json", "epoch, step, loss and finished"
    with reading(path, expected):
        content = read_object(path, expected)
        if "best_loss" in content:  # its name where the loss was the only score
            content["best_score"] = content.pop("best_loss")
        return _STATE.validate_python(content)
