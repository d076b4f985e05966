"""Turn a checkpoint of the reference into a folder of ours, and back (docs/checkpoints.md).

    python tools/convert_checkpoint.py checkpoint_000030_loss_0.623.pth output/old --cfg-path train_configs/old.yaml
    python tools/convert_checkpoint.py output/old/checkpoint_000030_loss_0.623 checkpoint_000030_loss_0.623.pth

The first writes output/old/checkpoint_000030_loss_0.623/. What has no place there (optimizer, weights of streams that
the layout does not show) is kept beside it in reference.pt, so that the way back gives the same file content.
"""

from __future__ import annotations

import argparse
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
from affect.data.config import Config, load_config, read_config, save_config
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


def main(arguments: list[str] | None = None) -> None:
    """Convert in the direction that the source asks for: from a file, or from a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=".pth file of the reference, or checkpoint folder of ours")
    parser.add_argument("target", type=Path, help="run folder to write the checkpoint into, or .pth file to write")
    parser.add_argument("--cfg-path", help="YAML file that the reference's checkpoint was trained with")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    args = parser.parse_args(arguments)
    if args.source.is_dir():
        to_reference(args.source, args.target)
        print(f"wrote {args.target}")
        return
    if not args.cfg_path:
        raise ValueError("--cfg-path: expected the YAML file that this checkpoint was trained with")
    folder, kept = from_reference(args.source, args.target, load_config(args.cfg_path, args.options))
    more = f" (kept in {KEPT}: {', '.join(kept)})" if kept else ""
    print(f"wrote {folder}{more}")


def from_reference(source: Path, run_folder: Path, config: Config) -> tuple[Path, list[str]]:
    """Write a reference checkpoint into a run folder as one of ours; return its folder and what was kept aside.

    Raises ValueError when the file is unsafe or its weights do not fit the configuration.
    """
    content = read_pth(source)
    state = {key.removeprefix("module."): weight for key, weight in content.pop("model").items()}
    adapter = adapter_from_reference(state)
    try:
        config = as_trained(config, state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    layouts = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    shapes = fusion_shapes(config.model, layouts, _llm_dim(state, source))
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
    _write(folder, fusion, adapter, config, train_state, {**content, "model": rest})
    return folder, [*rest, *content]


def to_reference(folder: Path, target: Path) -> None:
    """Write one of our checkpoints as a file of the reference (raises ValueError for what that cannot hold)."""
    if not (folder / "fusion.safetensors").is_file():
        raise ValueError(f"{folder}: expected a checkpoint folder with fusion.safetensors, found none")
    config = read_config(folder)
    kept = _load(folder / KEPT) if (folder / KEPT).is_file() else {}
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
    content = _load(path)
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


def _write(
    folder: Path,
    fusion: dict[str, Tensor],
    adapter: dict[str, Tensor],
    config: Config,
    state: TrainState,
    kept: dict[str, Any],
) -> None:
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: weight.clone() for name, weight in fusion.items()}, temporary / "fusion.safetensors")
    lora = lora_config(config.model)
    lora.base_model_name_or_path, lora.inference_mode = config.model.llama_model, True
    lora.save_pretrained(temporary / "adapter")
    adapter_file = temporary / "adapter" / "adapter_model.safetensors"
    save_file({name: weight.clone() for name, weight in adapter.items()}, adapter_file)
    torch.save(kept, temporary / KEPT)
    save_config(config, temporary / "config.yaml")
    (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1))
    temporary.rename(folder)


def _state(source: Path, content: dict[str, Any], config: Config) -> TrainState:
    """Return where the run was, from the file's name or content; it is over, for its optimizer cannot go on here."""
    named = _NAME.fullmatch(source.stem)
    epoch = int(named[1]) if named else int(content.get("epoch", 0))
    loss = float(named[2]) if named else 0.0
    return TrainState(epoch, epoch * config.run.iters_per_epoch, loss, finished=True)


def _llm_dim(state: dict[str, Tensor], source: Path) -> int:
    for key, weight in state.items():
        if re.fullmatch(r"(affectgpt|\w+_llama)_proj\.weight", key):
            return weight.shape[0]
    raise ValueError(f"{source}: expected projections into the language model (…_proj.weight), found none")


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
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
