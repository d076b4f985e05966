"""Checkpoints of the reference as folders of ours, and back (docs/checkpoints.md)."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from affect.core.files import atomic_write
from affect.core.layouts import LAYOUTS
from affect.core.schema import Modality
from affect.data.config import Config, read_config, save_config
from affect.engine.checkpoint import TrainState, read_state
from affect.models.affectgpt import fusion_shapes
from affect.models.llm import lora_config
from affect.models.reference_keys import (
    MULTI_POSITIONS,
    adapter_from_reference,
    adapter_to_reference,
    fusion_from_reference,
    fusion_to_reference,
    reference_key,
)

KEPT = "reference.pt"
"""What a reference checkpoint holds beyond our own files."""
_NAME = re.compile(r"checkpoint_(\d{6})_loss_(-?\d+\.\d{3})")
FACES = 8
"""Face crops of a clip, and frames around an emotion's peak, whatever frame_n_frms says."""


def from_reference(source: Path, run_folder: Path, config: Config) -> tuple[Path, list[str]]:
    """Write a reference checkpoint into a run folder as one of ours; return its folder and what was kept aside.

    Raises ValueError when the file is unsafe or its weights do not fit the configuration.
    """
    content = read_pth(source)
    state = {key.removeprefix("module."): weight for key, weight in content.pop("model").items()}
    adapter = adapter_from_reference(state)
    try:
        config = as_trained(config, state)
        layouts = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
        shapes = fusion_shapes(config.model, layouts, _llm_dim(state))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    try:
        fusion = fusion_from_reference(state, shapes, video_steps(config))
    except ValueError as error:
        raise ValueError(f"{source}: {error}; use the YAML file that it was trained with") from None
    fusion["token_scale"] = torch.tensor(0.0)  # tokens are not scaled
    read = {reference_key(name) for name in shapes} | adapter_to_reference(adapter).keys()
    read.discard(MULTI_POSITIONS)  # of which only some rows are read
    rest = {key: weight for key, weight in state.items() if key not in read}
    train_state = _state(source, content, config)
    folder = run_folder / f"checkpoint_{train_state.epoch:06d}_loss_{train_state.loss:.3f}"
    if folder.exists():
        raise ValueError(f"{folder} is there already; remove it or name another folder")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    lora = lora_config(config.model)
    lora.base_model_name_or_path, lora.inference_mode = config.model.llama_model, True
    lora.save_pretrained(temporary / "adapter")
    for name, weights in (("fusion", fusion), ("adapter/adapter_model", adapter)):  # copied, since they share memory
        save_file({key: weight.clone() for key, weight in weights.items()}, temporary / f"{name}.safetensors")
    torch.save({**content, "model": rest}, temporary / KEPT)
    save_config(config, temporary / "config.yaml")
    (temporary / "state.json").write_text(json.dumps(asdict(train_state), indent=1))
    temporary.rename(folder)
    return folder, [*rest, *content]


def to_reference(folder: Path, target: Path) -> None:
    """Write one of our checkpoints as a file of the reference (raises ValueError for what that cannot hold)."""
    if not (folder / "fusion.safetensors").is_file():
        raise ValueError(f"{folder}: expected a checkpoint folder with fusion.safetensors, found none")
    config = read_config(folder)
    kept = read_pth(folder / KEPT) if (folder / KEPT).is_file() else {}
    rest = kept.get("model", {})
    fusion = load_file(folder / "fusion.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    model = rest | fusion_to_reference(fusion, video_steps(config), rest.get(MULTI_POSITIONS))
    model |= adapter_to_reference(adapter)
    content = {"config": config.model_dump(mode="json"), "epoch": read_state(folder).epoch} | kept | {"model": model}
    with atomic_write(target) as handle:
        torch.save(content, handle)


def read_pth(path: Path) -> dict[str, Any]:
    """Return what a reference checkpoint holds; nothing in it is run (raises ValueError when it cannot be read so)."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object of {found[1]}" if found else "objects"
        raise ValueError(
            f"{path}: holds {what}, and reading it could run code from the file; expected tensors, numbers, text, "
            "lists and dicts. Where it was written, load it and save what is needed: "
            "torch.save({'model': checkpoint['model'], 'epoch': checkpoint['epoch']}, path)"
        ) from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder; expected a checkpoint") from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: expected a checkpoint, but it cannot be read ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: expected a checkpoint with weights under 'model', as training writes it")
    return content


def as_trained(config: Config, state: dict[str, Tensor]) -> Config:
    """Return a configuration that says of the model what the reference's file leaves to its weights and its code.

    Raises ValueError where the configuration names no data sets or the weights hold no LoRA of one rank.
    """
    if not config.datasets:
        raise ValueError("section datasets: expected the data sets of the training, whose layouts make the model")
    ranks = {weight.shape[0] for name, weight in adapter_from_reference(state).items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise ValueError(f"expected LoRA weights of one rank, found ranks {sorted(ranks) or 'none'}")
    fixed = {"fuse_au": False, "standardize_features": False, "normalize_tokens": False, "ckpt": None}
    fixed["lora_r"] = ranks.pop()
    # behind an encoder the reference scores a lone picture, read from disk it does not
    on_the_fly = not all(section.use_preextracted_features for section in config.datasets.values())
    told = {"score_single_picture": on_the_fly}
    for kind in ("video", "audio", "au"):
        by_queries, by_score = f"{kind}_query_tokens" in state, f"{kind}_attention_mlp.weight" in state
        told[f"{kind}_fusion_type"] = "qformer" if by_queries else "attention" if by_score else "mean"
    told = {key: value for key, value in told.items() if key not in config.model.model_fields_set}
    return config.model_copy(update={"model": config.model.model_copy(update=fixed | told)})


def video_steps(config: Config) -> int:
    """Return how many video steps the pre-fusion reads of a clip."""
    for section in config.datasets.values():
        fused = LAYOUTS[section.face_or_frame].fused
        if Modality.FRAME in fused and section.frame_sampling != "emotion_peak":
            return section.frame_n_frms
    return FACES


def _state(source: Path, content: dict[str, Any], config: Config) -> TrainState:
    """Return where the run was, from the file's name or content; it is over, for its optimizer cannot go on here."""
    named = _NAME.fullmatch(source.stem)
    epoch = int(named[1]) if named else int(content.get("epoch", 0))
    loss = float(named[2]) if named else 0.0
    return TrainState(epoch, epoch * config.run.iters_per_epoch, loss, finished=True)


def _llm_dim(state: dict[str, Tensor]) -> int:
    for key, weight in state.items():
        if re.fullmatch(r"(affectgpt|\w+_llama)_proj\.weight", key):
            return weight.shape[0]
    raise ValueError("expected projections into the language model (…_proj.weight), found none")
