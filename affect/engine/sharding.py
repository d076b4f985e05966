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


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """Return what tells accelerate to divide weights, gradients and optimizer state over the processes."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        mixed_precision_policy=MixedPrecisionPolicy(),  # autocast does it; the default would round loss and gradients
    )


def prepare_sharding(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """Name the language model's layers as the units to divide, and let every step have every gradient.

    Processes exchange the gradients that they have, so all must have the same ones: where no clip of
    a batch has some stream, the weights that read it get a gradient of zero.
    """
    modules = model.named_modules()
    place, language_model = next((n, m) for n, m in modules if getattr(m, "_no_split_modules", None))
    plugin.transformer_cls_names_to_wrap = sorted(language_model._no_split_modules)

    def touch(module: nn.Module, arguments: tuple[Any, ...], loss: Tensor) -> Tensor:
        weights = (weight for name, weight in module.named_parameters() if not name.startswith(f"{place}."))
        return loss + sum(0.0 * weight.sum() for weight in weights if weight.requires_grad)

    if place:  # there are others beside it
        model.register_forward_hook(touch)


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state with every tensor whole and in main memory."""
    state = optimizer.state_dict()
    moments = {
        weight: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for weight, entry in state["state"].items()
    }
    return {**state, "state": moments}


def load_whole_optimizer(optimizer: torch.optim.Optimizer, moments: dict[int, dict[str, Any]]) -> None:
    """Give the optimizer whole moments, each tensor divided as its weight is; its settings stay."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    divided = {
        number: {name: like(weights[number], value) for name, value in entry.items()}
        for number, entry in moments.items()
    }
    optimizer.load_state_dict({"state": divided, "param_groups": optimizer.state_dict()["param_groups"]})


def whole(value: Tensor) -> Tensor:
    """Return a tensor whole, contiguous and in main memory."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().contiguous()


def like(weight: Tensor, value: Any) -> Any:
    """Return a whole tensor of a weight's shape divided and laid out as the weight is; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    if isinstance(weight, DTensor):
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)  # fused optimizers walk along both memories
