"""Checkpoints: a folder with weights (safetensors), the LoRA adapter (PEFT), optimizer, curves and plain JSON.

{run}/checkpoint_{epoch:06d}_loss_{mean loss:.3f}/                        after an epoch
{run}/checkpoint_{epoch:06d}_step_{step:09d}_loss_{mean loss:.3f}/       within the next one, when asked to leave
    fusion.safetensors   branches, pre-fusion and feature statistics
    adapter/             the LoRA adapter, as PEFT reads it
    optimizer.pt         tensors only, read with weights_only
    scaler.json          scale of float16 gradients, where there is one
    curves.npz           every step's rate and loss so far
    state.json           epoch, step, mean loss, validation loss and the best epoch by it
    config.yaml          the resolved configuration
A folder is written under another name and renamed when complete, so a half-written one is never read.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.amp import GradScaler

from affect.data.config import Config, parse_config, save_config
from affect.engine.curves import TrainingVisualizer
from affect.engine.run_folder import FoundRun, choose_folder, differing_keys
from affect.engine.sharding import load_whole_optimizer
from affect.models.affectgpt import AffectGPT

_NAME = re.compile(r"checkpoint_(\d{6})(_step_\d{9})?_loss_(-?\d+\.\d{3})")
_PASSING_KEYS = frozenset(
    [
        "check_features",
        "device",
        "keep_checkpoints",
        "log_every",
        "num_workers",
        "output_dir",
        "resume_ckpt_path",
        "trackers",
        "visualize_training",
    ]
)
"""Keys of the run section that may change when a run goes on."""


@dataclass(frozen=True)
class TrainState:
    """Where a run is."""

    epoch: int
    """Epochs completed."""
    step: int
    """Iterations completed."""
    loss: float
    """Mean loss of the last epoch, or so far of the one that was left."""
    finished: bool = False
    reason: str = ""
    """Why the run ended or was left."""
    val_loss: float | None = None
    """Loss over run.val_split after the last epoch."""
    best_epoch: int | None = None
    best_loss: float | None = None
    """Epoch of the lowest validation loss so far, and that loss."""


def save_checkpoint(
    run_folder: Path,
    model: AffectGPT,
    weights: tuple[dict[str, Tensor], dict[str, Tensor]],
    optimizer_state: dict[str, Any],
    scaler: GradScaler | None,
    curves: TrainingVisualizer,
    state: TrainState,
    config: Config,
) -> Path:
    """Write a checkpoint whole or not at all, drop those that are no longer wanted, return its folder.

    weights: whole state of everything but the language model, and of the adapter. Kept are the last
    `run.keep_checkpoints`, the best one by validation loss, and one within an epoch until that epoch ends.
    """
    inside = state.step > state.epoch * config.run.iters_per_epoch
    stem = f"checkpoint_{state.epoch:06d}" + (f"_step_{state.step:09d}" if inside else "")
    folder = run_folder / f"{stem}_loss_{state.loss:.3f}"
    temporary = run_folder / f".{folder.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fusion, adapter = weights
    save_file(fusion, temporary / "fusion.safetensors")
    model.llm.save_pretrained(temporary / "adapter", state_dict=adapter)
    torch.save(optimizer_state, temporary / "optimizer.pt")
    if scaler is not None:
        (temporary / "scaler.json").write_text(json.dumps(scaler.state_dict()))
    curves.save_data(temporary / "curves.npz")
    save_config(config, temporary / "config.yaml")
    (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1))
    for other in run_folder.glob(f"{stem}_loss_*"):
        shutil.rmtree(other)
    temporary.rename(folder)
    _drop_old(run_folder, folder, state, config.run.keep_checkpoints)
    return folder


def _drop_old(run_folder: Path, newest: Path, state: TrainState, kept: int) -> None:
    whole = list_checkpoints(run_folder, whole_epochs=True)
    best = [path for path in whole if int(_NAME.fullmatch(path.name)[1]) == state.best_epoch]
    for path in list_checkpoints(run_folder):
        if path not in (*whole[-kept:], *best, newest):
            shutil.rmtree(path)


def list_checkpoints(run_folder: Path, whole_epochs: bool = False) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first; with `whole_epochs`, none that was left within one."""
    if not run_folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in run_folder.iterdir() if path.is_dir())
    return sorted(path for match, path in matches if match and not (whole_epochs and match[2]))


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
    by_epoch = {read_state(checkpoint).epoch: checkpoint for checkpoint in whole}
    if epoch in by_epoch:
        return by_epoch[epoch]
    epochs = ", ".join(map(str, by_epoch)) or "none that was completed"
    raise ValueError(f"{checkpoints[0].parent}: expected a checkpoint of epoch {epoch}, found epochs {epochs}")


def _newest(run: Path) -> float:
    return list_checkpoints(run)[-1].stat().st_mtime


def read_state(checkpoint: Path) -> TrainState:
    """Return where the run was at a checkpoint (raises ValueError when state.json is not readable)."""
    try:
        return TrainState(**json.loads((checkpoint / "state.json").read_text()))
    except (OSError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{checkpoint / 'state.json'}: expected epoch, step, loss and finished ({error})") from None


def read_config(checkpoint: Path) -> Config:
    """Return the configuration that a checkpoint was trained with."""
    path = checkpoint / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected the configuration of the checkpoint ({error})") from None
    return parse_config(content, str(path))


def load_weights(checkpoint: Path, model: AffectGPT) -> None:
    """Load fusion weights and LoRA adapter into a model of the same shape.

    Raises ValueError naming the first weights that do not fit.
    """
    fusion = _read_weights(checkpoint / "fusion.safetensors")
    _require_same(fusion, model.fusion_state(), checkpoint / "fusion.safetensors")
    adapter = _read_weights(checkpoint / "adapter" / "adapter_model.safetensors")
    _require_same(adapter, get_peft_model_state_dict(model.llm), checkpoint / "adapter")
    model.load_state_dict(fusion, strict=False)
    set_peft_model_state_dict(model.llm, adapter)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, scaler: GradScaler | None) -> None:
    """Give optimizer and scaler the state of a checkpoint (raises ValueError when it cannot be read)."""
    path = checkpoint / "optimizer.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path}: expected the optimizer's state, but it cannot be read ({error})") from None
    load_whole_optimizer(optimizer, state)
    path = checkpoint / "scaler.json"
    if scaler is not None and path.is_file():  # a run may have begun without float16, on another machine
        try:
            scaler.load_state_dict(json.loads(path.read_text()))
        except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected the state of a gradient scaler ({error})") from None


def run_folder(config: Config, cfg_path: str | Path) -> tuple[Path, Path | None]:
    """Return the folder of a run and the checkpoint that it goes on from, if any.

    `run.output_dir`, or output/{cfg}/{cfg}_{YYYYmmddHHMM}; an unfinished run there with the same
    configuration goes on, a finished or different one is left alone. Raises ValueError when
    `run.output_dir` holds a run of another configuration.
    """
    asked = Path(config.run.resume_ckpt_path) if config.run.resume_ckpt_path else None
    folder = choose_folder(Path(cfg_path).stem, config.run.output_dir, lambda folder: _look(folder, config))
    return folder, _further(asked, (list_checkpoints(folder) or [None])[-1])


def _look(folder: Path, config: Config) -> FoundRun | None:
    """Return the run in a folder, compared with a configuration; None where no checkpoint is."""
    last = (list_checkpoints(folder) or [None])[-1]
    return FoundRun(_differences(config, read_config(last)), read_state(last).finished) if last else None


def _further(asked: Path | None, last: Path | None) -> Path | None:
    """Return the checkpoint that is further on: a stopped run that had gone on from `asked` goes on from its own."""
    if asked is None or last is None:
        return asked or last
    return last if read_state(last).step >= read_state(asked).step else asked


def _differences(config: Config, other: Config) -> list[str]:
    """Return the keys in which two configurations of a training run differ."""
    here, there = (c.model_dump(exclude={"inference"}) for c in (config, other))
    return differing_keys(here, there, _PASSING_KEYS)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected weights of a checkpoint, but they cannot be read ({error})") from None


def _require_same(found: dict[str, Tensor], expected: dict[str, Tensor], where: Path) -> None:
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is not in the model" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(found.keys() & expected.keys())
        if found[name].shape != expected[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(f"{where}: the checkpoint does not fit the config: {faults[0]}{more}; use its own config.yaml")
