"""What the weights of the reference's checkpoints are called here, and the way back.

The numbers are the same but for the position table of a Q-Former pre-fusion: the reference has one
table of 264 rows over [video steps, audio steps], here each stream has its own. The first
`video_steps` rows are the video's, the rows after them the sound's, so the two agree on clips
with that many video steps, and the number must be known (8 for faces).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from affect.models.fusion import POSITIONS

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
