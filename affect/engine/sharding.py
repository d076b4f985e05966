"""Weights and optimizer state that processes may share out (FSDP): whole when written, divided again when read.

Every process must call these functions, since a shared-out tensor is gathered from all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from affect.models.affectgpt import AffectGPT


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """Return what tells accelerate to divide weights, gradients and optimizer state over the processes."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        mixed_precision_policy=MixedPrecisionPolicy(),  # autocast does it; the default would round loss and gradients
    )


def prepare_sharding(model: AffectGPT, plugin: FullyShardedDataParallelPlugin) -> None:
    """Name the language model's layers as the units to divide, and let every step have every gradient.

    Processes exchange the gradients that they have, so all must have the same ones: where no clip of
    a batch has some stream, the weights that read it get a gradient of zero.
    """
    plugin.transformer_cls_names_to_wrap = sorted(model.llm.get_base_model()._no_split_modules)

    def touch(module: nn.Module, arguments: tuple[Any, ...], loss: Tensor) -> Tensor:
        weights = (weight for name, weight in module.named_parameters() if not name.startswith("llm."))
        return loss + sum(0.0 * weight.sum() for weight in weights if weight.requires_grad)

    model.register_forward_hook(touch)


def whole_weights(model: AffectGPT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return everything but the language model, and the LoRA weights in it, whole and in main memory."""
    adapter = {name: value for name, value in model.llm.state_dict().items() if "lora_" in name}
    fusion = model.fusion_state()
    return tuple({name: _whole(value).contiguous() for name, value in part.items()} for part in (fusion, adapter))


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state with every tensor whole and in main memory."""
    state = optimizer.state_dict()
    moments = {
        weight: {name: _whole(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for weight, entry in state["state"].items()
    }
    return {**state, "state": moments}


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimizer a whole state, each tensor divided as its weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {number: _like(weights[number], entry) for number, entry in state["state"].items()}
    optimizer.load_state_dict({**state, "state": moments})


def _whole(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def _like(weight: Tensor, entry: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(weight, DTensor):
        return entry
    return {
        name: distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
        if isinstance(value, Tensor) and value.shape == weight.shape
        else value
        for name, value in entry.items()
    }
