"""Weights of AffectGPT in a checkpoint's folder.

fusion.safetensors   branches, pre-fusion and feature statistics
adapter/             the LoRA adapter, as PEFT reads it
"""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from affect.core.tensors import read_tensors
from affect.models.affectgpt import AffectGPT


def save_weights(folder: Path, model: AffectGPT, fusion: dict[str, Tensor], adapter: dict[str, Tensor]) -> None:
    """Write the weights of everything but the language model, and of the adapter."""
    save_file(fusion, folder / "fusion.safetensors")
    model.llm.save_pretrained(folder / "adapter", state_dict=adapter)


def has_weights(checkpoint: Path) -> bool:
    """Whether all files of weights are there; earlier versions, when killed, left checkpoints half removed."""
    return all((checkpoint / part).is_file() for part in ("fusion.safetensors", "adapter/adapter_model.safetensors"))


def load_weights(checkpoint: Path, model: AffectGPT) -> None:
    """Load fusion weights and LoRA adapter into a model of the same shape.

    Raises ValueError naming the first weights that do not fit.
    """
    fusion = read_tensors(checkpoint / "fusion.safetensors", "weights of a checkpoint")
    _require_same(fusion, model.fusion_state(), checkpoint / "fusion.safetensors")
    load_adapter(checkpoint / "adapter", model.llm)
    model.load_state_dict(fusion, strict=False)


def load_adapter(folder: Path, llm: PeftModel) -> None:
    """Load an adapter into a language model with one of the same shape (raises ValueError where it does not fit)."""
    adapter = read_tensors(folder / "adapter_model.safetensors", "weights of a checkpoint")
    _require_same(adapter, get_peft_model_state_dict(llm), folder)
    set_peft_model_state_dict(llm, adapter)


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
