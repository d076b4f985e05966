"""Starting a run: device, precision, processes and trackers from the configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    PartialState,
)
from accelerate.tracking import filter_trackers
from accelerate.utils import broadcast_object_list

from affect.core.config import RunSettings, flat
from affect.core.device import half_precision, pick_device
from affect.engine.sharding import sharding_plugin

logger = logging.getLogger(__name__)

PRECISION = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precision -> type of the frozen language model's weights."""
PATIENCE = timedelta(days=1)
"""How long processes wait for the main one, which may have features to check or sentences to write for hours."""


Found = TypeVar("Found")


def agreed(find: Callable[[], Found]) -> Found:
    """Return what the main process finds, on every process; what it raises, all raise (ValueError)."""
    found, fault = None, None
    if PartialState().is_main_process:
        try:
            found = find()
        except ValueError as error:
            fault = error
    found, fault = broadcast_object_list([found, fault])
    if fault:
        raise fault
    return found


def start_accelerator(run: RunSettings) -> Accelerator:
    """Return the accelerator for the configured device, precision and processes.

    Raises ValueError for a device that does not exist, or that several processes cannot share.
    """
    device, processes = pick_device(run.device), int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = device.type == "cuda"
    if device.index is not None:
        if processes > 1:
            raise ValueError(
                f"run.device: {processes} processes cannot share {device}; set cuda, and each takes its own"
            )
        torch.cuda.set_device(device)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu and beside > torch.cuda.device_count():
        raise ValueError(
            f"{beside} processes were started on this machine, expected at most one for each of its "
            f"{torch.cuda.device_count()} GPUs; give torchrun a smaller --nproc-per-node"
        )
    if not on_gpu and (run.amp or run.device == "cuda"):
        logger.info("no GPU is used: training on the CPU in float32")
    sharded = run.fsdp and processes > 1 and on_gpu
    if run.fsdp and not sharded:
        logger.info("run.fsdp divides weights over several GPUs; with %s it does nothing", "one" if on_gpu else "none")
    half = "bf16" if on_gpu and half_precision() == torch.bfloat16 else "fp16"
    return Accelerator(
        cpu=not on_gpu,
        mixed_precision=half if on_gpu and run.amp else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
        fsdp_plugin=sharding_plugin() if sharded else None,
    )


def check_trackers(run: RunSettings) -> None:
    """Raise ValueError when the package of a tracker is not there."""
    for name in run.trackers:
        if find_spec(name) is None:
            raise ValueError(
                f"run.trackers: {name} is not installed; install it (pip install 'affect[{name}]') or leave it out"
            )


def start_trackers(accelerator: Accelerator, config: Any, folder: Path) -> None:
    """Open the configured trackers below the run's folder, on the main process, with the whole configuration."""
    if not config.run.trackers:
        return
    place = folder / "trackers"
    if accelerator.is_main_process:
        place.mkdir(parents=True, exist_ok=True)
    accelerator.project_configuration.set_directories(str(place))
    accelerator.log_with = filter_trackers(config.run.trackers, str(place))
    accelerator.init_trackers(
        folder.parent.name or "affect",
        config={key: _plain(value) for key, value in flat(config.model_dump(mode="json")).items()},
        init_kwargs={"wandb": {"name": folder.name, "dir": str(place)}},
    )


def _plain(value: Any) -> Any:
    """Return a number or text, as trackers want settings."""
    return value if isinstance(value, bool | int | float | str) else str(value)
