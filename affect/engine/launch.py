"""Starting a run: device, precision, processes and trackers from the configuration."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from accelerate.tracking import filter_trackers

from affect.core.device import pick_device

logger = logging.getLogger(__name__)

PRECISION = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precision -> type of the frozen language model's weights."""
PATIENCE = timedelta(days=1)
"""How long processes wait for the main one, which may have features to check or sentences to write for hours."""


class LaunchSettings(Protocol):
    """What the run sections of all tracks say about starting."""

    device: str
    amp: bool
    trackers: list[Any]


class TrackedConfig(Protocol):
    """A whole configuration of any track."""

    run: LaunchSettings

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return its sections."""


def start_accelerator(run: LaunchSettings) -> Accelerator:
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
    fsdp = getattr(run, "fsdp", False)  # the networks of the image track fit on one GPU and have no such setting
    sharded = fsdp and processes > 1 and on_gpu
    if fsdp and not sharded:
        logger.info("run.fsdp divides weights over several GPUs; with %s it does nothing", "one" if on_gpu else "none")
    half = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return Accelerator(
        cpu=not on_gpu,
        mixed_precision=half if on_gpu and run.amp else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
        fsdp_plugin=_sharding_plugin() if sharded else None,
    )


def _sharding_plugin() -> FullyShardedDataParallelPlugin:
    from affect.engine.sharding import sharding_plugin  # knows language models, which take seconds to import

    return sharding_plugin()


def check_trackers(run: LaunchSettings) -> None:
    """Raise ValueError when the package of a tracker is not there."""
    for name in run.trackers:
        if find_spec(name) is None:
            raise ValueError(
                f"run.trackers: {name} is not installed; install it (pip install 'affect[{name}]') or leave it out"
            )


def start_trackers(accelerator: Accelerator, config: TrackedConfig, folder: Path) -> None:
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
        config=_flat(config.model_dump(mode="json")),
        init_kwargs={"wandb": {"name": folder.name, "dir": str(place)}},
    )


def _flat(section: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings as one level, section.key -> number or text, as trackers want them."""
    settings: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            settings |= _flat(value, f"{before}{key}.")
        else:
            settings[before + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return settings
