"""Checkpoints of the reference as folders of ours, and back (docs/checkpoints.md).

The numbers are the same but for the position table of a Q-Former pre-fusion: the reference has one table of 264 rows
over [video steps, audio steps], here each stream has its own. The first `video_steps` rows are the video's, the rows
after them the sound's, so the two agree on clips with that many video steps, and the number must be known (8 for
faces).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from affect.core.files import atomic_write
from affect.core.layouts import Layout
from affect.core.schema import Modality
from affect.core.tensors import read_pickled, read_tensors
from affect.data.config import Config, ModelConfig, read_config, save_config
from affect.engine.checkpoint import TrainState, list_checkpoints, read_state, save_checkpoint
from affect.models.affectgpt import fusion_parts
from affect.models.fusion import POSITIONS
from affect.models.llm import lora_config

KEPT = "reference.pt"
"""What a reference checkpoint holds beyond our own files."""
_NAME = re.compile(r"checkpoint_(\d{6})_loss_(-?\d+\.\d{3})")
FACES = 8
"""Face crops of a clip, and frames around an emotion's peak, whatever frame_n_frms says."""
MULTI_POSITIONS = "multi_position_embedding.weight"
MULTI_ROWS = 264
"""Rows of the reference's position table of the pre-fusion."""
LLM = "llama_model."
"""What the reference writes before the names of the language model's weights."""

_RULES = (
    (r"^fusion\.qformer\.", "branches.multi.qformer."),
    (r"^branches\.(\w+)\.qformer\.query_tokens$", r"\1_query_tokens"),
    (r"^branches\.(\w+)\.qformer\.bert\.layernorm\.", r"\1_Qformer.bert.embeddings.LayerNorm."),
    (r"^branches\.(\w+)\.qformer\.bert\.encoder\.", r"\1_Qformer.bert.encoder."),
    (r"attention\.attention\.", "attention.self."),
    (r"^branches\.video\.proj\.", "affectgpt_proj."),
    (r"^branches\.(\w+)\.proj\.", r"\1_llama_proj."),
    (r"^branches\.(\w+)\.score\.", r"\1_attention_mlp."),
    (r"^branches\.video\.positions\.table\.", "video_frame_position_embedding."),
    (r"^branches\.(\w+)\.positions\.table\.", r"\1_position_embedding."),
    (r"^fusion\.projections\.(\w+)\.", r"multi_\1_embs."),
    (r"^fusion\.positions\.\w+\.table\.weight$", MULTI_POSITIONS),
    (r"^fusion\.mix\.", "attention_mlp."),
    (r"^fusion\.score\.", "fc_att."),
    (r"^fusion\.proj\.", "multi_llama_proj."),
)
_MARK = "fusion.stream_marks."
_ONLY_HERE = re.compile(r"norms\.|token_scale$|fusion\.\w+\.au\b")


def from_reference(source: Path, run_folder: Path, config: Config) -> tuple[Path, list[str]]:
    """Write a reference checkpoint into a run folder as one of ours; return its folder and what was kept aside.

    Raises ValueError when the file is unsafe or its weights do not fit the configuration.
    """
    content = read_pth(source)
    state = {key.removeprefix("module."): weight for key, weight in content.pop("model").items()}
    adapter = adapter_from_reference(state)
    try:
        config = as_trained(config, state)
        layouts = [section.layout for section in config.datasets.values()]
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
    if there := [path for path in list_checkpoints(run_folder) if read_state(path).epoch == train_state.epoch]:
        raise ValueError(f"{there[0]} is there already; remove it or name another folder")

    def write(folder: Path) -> None:
        lora = lora_config(config.model)
        lora.base_model_name_or_path, lora.inference_mode = config.model.llama_model, True
        lora.save_pretrained(folder / "adapter")
        for name, weights in (("fusion", fusion), ("adapter/adapter_model", adapter)):  # copied: they share memory
            save_file({key: weight.clone() for key, weight in weights.items()}, folder / f"{name}.safetensors")
        torch.save({**content, "model": rest}, folder / KEPT)
        save_config(config, folder / "config.yaml")

    folder = save_checkpoint(run_folder, train_state, inside=False, write=write, keep=sys.maxsize)
    return folder, [*rest, *content]


def to_reference(folder: Path, target: Path) -> None:
    """Write one of our checkpoints as a file of the reference (raises ValueError for what that cannot hold)."""
    if not (folder / "fusion.safetensors").is_file():
        raise ValueError(f"{folder}: expected a checkpoint folder with fusion.safetensors, found none")
    config = read_config(folder)
    kept = read_pth(folder / KEPT) if (folder / KEPT).is_file() else {}
    rest = kept.get("model", {})
    fusion = read_tensors(folder / "fusion.safetensors", "weights of a checkpoint")
    adapter = read_tensors(folder / "adapter" / "adapter_model.safetensors", "weights of a checkpoint")
    model = rest | fusion_to_reference(fusion, video_steps(config), rest.get(MULTI_POSITIONS))
    model |= adapter_to_reference(adapter)
    content = {"config": config.model_dump(mode="json"), "epoch": read_state(folder).epoch} | kept | {"model": model}
    with atomic_write(target) as handle:
        torch.save(content, handle)


def read_pth(path: Path) -> dict[str, Any]:
    """Return what a reference checkpoint holds; nothing in it is run (raises ValueError when it cannot be read so)."""
    content = read_pickled(path, "a checkpoint")
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
    video = {Modality.FRAME, Modality.FACE}
    on_the_fly = any(video & {*section.live(skip_encoders=False)} for section in config.datasets.values())
    told = {"score_single_picture": on_the_fly}
    for kind in ("video", "audio", "au"):
        by_queries, by_score = f"{kind}_query_tokens" in state, f"{kind}_attention_mlp.weight" in state
        told[f"{kind}_fusion_type"] = "qformer" if by_queries else "attention" if by_score else "mean"
    told = {key: value for key, value in told.items() if key not in config.model.model_fields_set}
    return config.model_copy(update={"model": config.model.model_copy(update=fixed | told)})


def video_steps(config: Config) -> int:
    """Return how many video steps the pre-fusion reads of a clip."""
    for section in config.datasets.values():
        if Modality.FRAME in section.layout.fused and section.frame_sampling != "emotion_peak":
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


def fusion_shapes(config: ModelConfig, layouts: Iterable[Layout], llm_dim: int) -> dict[str, torch.Size]:
    """Return name -> shape of the weights of `fusion_parts`."""
    with torch.device("meta"):  # no memory, no numbers
        parts = fusion_parts(config, layouts, llm_dim)
    return {name: weight.shape for name, weight in parts.named_parameters()}


def reference_key(name: str) -> str:
    """Return what the reference calls one of the weights of our branches and pre-fusion."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def fusion_from_reference(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], video_steps: int
) -> dict[str, Tensor]:
    """Return the weights of branches and pre-fusion, as `shapes` names them, from a reference's state.

    The marks of streams, which the reference lacks, are zero. Raises ValueError naming the first weight
    that is missing or of another shape, and how many are.
    """
    _check_steps(video_steps)
    fusion, faults = {}, []
    for name, shape in shapes.items():
        key = reference_key(name)
        found = torch.zeros(shape) if name.startswith(_MARK) else state.get(key)
        if found is not None and key == MULTI_POSITIONS:
            first = _first_row(name, video_steps)
            found = found[first : first + shape[0]]
        if found is None:
            faults.append(f"{key} is missing")
        elif found.shape != shape:
            faults.append(f"{key} is {list(found.shape)}, expected {list(shape)}")
        else:
            fusion[name] = found
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(f"the reference's weights do not fit the config: {faults[0]}{more}")
    return fusion


def fusion_to_reference(
    fusion: Mapping[str, Tensor], video_steps: int, table: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the reference's state of branches and pre-fusion; the mark of a stream joins its positions.

    table: [264, D], for the rows that no clip of `video_steps` reads (zeros, when not given). Raises
    ValueError naming a weight that the reference has no place for.
    """
    _check_steps(video_steps)
    state = {}
    for name, weight in fusion.items():
        if _ONLY_HERE.match(name) and weight.any():
            raise ValueError(
                f"{name}: the reference has nothing like it; expected a model trained with model.fuse_au, "
                "model.standardize_features and model.normalize_tokens False"
            )
        key = reference_key(name)
        if key == MULTI_POSITIONS:
            if key not in state:
                state[key] = weight.new_zeros(MULTI_ROWS, weight.shape[1]) if table is None else table.clone()
            first = _first_row(name, video_steps)
            marked = weight + fusion[_MARK + name.split(".")[2]]
            read = marked[:video_steps] if first == 0 else marked
            state[key][first : first + len(read)] = read
        elif not name.startswith(_MARK) and not _ONLY_HERE.match(name):
            state[key] = weight
    return state


def adapter_from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the LoRA weights of a reference's state under the names of PEFT's files."""
    lora = {key.removeprefix(LLM): weight for key, weight in state.items() if key.startswith(LLM) and ".lora_" in key}
    return {name.replace(".default.", "."): weight for name, weight in lora.items()}


def adapter_to_reference(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return LoRA weights of PEFT's files under the reference's names."""
    return {f"{LLM}{re.sub(r'(?=weight$)', 'default.', name)}": weight for name, weight in adapter.items()}


def _first_row(name: str, video_steps: int) -> int:
    """Return where one of our position tables begins in the reference's."""
    return 0 if ".video." in name else video_steps


def _check_steps(video_steps: int) -> None:
    if not 0 < video_steps <= POSITIONS["video"]:
        raise ValueError(
            f"video steps of the pre-fusion: expected 1 to {POSITIONS['video']}, as many as its position table has, "
            f"found {video_steps}"
        )
