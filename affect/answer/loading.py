"""The model of a checkpoint on the device that is to answer, and what writes its answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from affect.answer.vllm import VllmWriter
from affect.core.device import pick_device
from affect.core.layouts import LAYOUTS
from affect.core.schema import Batch
from affect.data.config import Config, InferenceConfig
from affect.models.affectgpt import AffectGPT, Decoding, build_affectgpt
from affect.models.saved import load_weights

logger = logging.getLogger(__name__)


def inference_device(inference: InferenceConfig) -> torch.device:
    """Return the configured device; `gpu` is the CPU on a machine that has none, for users' files always name one.

    With backend vllm it is the CPU, since vLLM takes the GPU. Raises ValueError for a GPU that does not exist.
    """
    if inference.backend == "vllm":
        return torch.device("cpu")
    if inference.gpu is None or inference.device != "auto":
        return pick_device(inference.device, "inference.device")
    if not torch.cuda.is_available():
        logger.info("inference.gpu: %d, but this machine has no GPU: answering on the CPU", inference.gpu)
        return torch.device("cpu")
    return pick_device(f"cuda:{inference.gpu}", "inference.gpu")


def check_layout(config: Config, checkpoint: Path, layout: str) -> None:
    """Raise ValueError where a checkpoint was never trained on a stream of the layout."""
    trained = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    known = {stream for each in trained for stream in each.branches}
    unknown = [stream for stream in LAYOUTS[layout].branches if stream not in known]
    if unknown or (LAYOUTS[layout].fused and not any(each.fused for each in trained)):
        names = ", ".join(section.face_or_frame for section in config.datasets.values())
        raise ValueError(f"{checkpoint}: expected a layout like those it was trained on ({names}), found {layout}")


def load_model(config: Config, checkpoint: Path) -> AffectGPT:
    """Return the model of a checkpoint on its device, in bfloat16 where a GPU can.

    config: what the checkpoint was trained with, and the wanted `inference` section. Raises ValueError when the
    checkpoint does not fit, the device does not exist, or 4 bits are asked for where they cannot be.
    """
    device = inference_device(config.inference)
    if config.model.load_in_4bit and device.type != "cuda":
        raise ValueError(
            f"model.load_in_4bit: expected answers by backend hf on a GPU, found backend {config.inference.backend} on "
            f"{device}; set it to False"
        )
    if device.index is not None:
        torch.cuda.set_device(device)  # where weights in 4 bits are loaded to
    on_gpu = device.type == "cuda" or (config.inference.backend == "vllm" and torch.cuda.is_available())
    half = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    trained = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    model = build_affectgpt(config.model, trained, torch.bfloat16 if half else torch.float32)
    exact = not half and not config.model.load_in_4bit
    use_checkpoint(model, checkpoint, merge=exact and config.inference.backend == "hf")
    return model.to(device).eval()


def use_checkpoint(model: AffectGPT, checkpoint: Path, merge: bool | None = None) -> None:
    """Load the weights of a checkpoint into a model that is to answer (raises ValueError when they do not fit).

    merge: add the adapter to the weights that it adapts, which saves a third of the time; by default where the
    checkpoint before was merged. In bfloat16 the sum would be rounded, and answers would differ.
    """
    layer = next(module for module in model.llm.modules() if isinstance(module, LoraLayer))
    merge = layer.merged if merge is None else merge
    if layer.merged:
        model.llm.unmerge_adapter()
    load_weights(checkpoint, model)
    if merge:
        model.llm.merge_adapter()


def open_writer(config: Config, model: AffectGPT, checkpoint: Path) -> Callable[[Batch, Decoding], list[str]]:
    """Return what writes the answers of a checkpoint: the model, or vLLM (raises ImportError where that is not)."""
    if config.inference.backend == "hf":
        return model.generate
    return VllmWriter(model, checkpoint, config.inference.max_new_tokens)
