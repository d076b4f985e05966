"""Train a model: python train.py --cfg-path train_configs/x.yaml [--options run.max_epoch=2 …]

`task:` in the file says what is trained: affectgpt, au_agent, or expressions (images of faces).

On several GPUs: torchrun --nproc-per-node 8 train.py --cfg-path train_configs/x.yaml
A run that was stopped goes on from its last checkpoint when the same command is given again. SIGTERM
lets it finish the step, write a checkpoint and leave with exit code 143.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affect.core.config import parse, read_yaml, task_name

if TYPE_CHECKING:
    from affect.data.config import Config


def main(arguments: list[str] | None = None) -> int:
    """Train as a file says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="YAML configuration")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    content = read_yaml(args.cfg_path)
    start = {"affectgpt": _affectgpt, "au_agent": _au_agent, "expressions": _expressions}
    finished = start[task_name(content, args.cfg_path)](content, args.cfg_path, args.options)
    from affect.engine.stop import EXIT_CODE

    return 0 if finished else EXIT_CODE


def _affectgpt(content: dict[str, Any], where: str, options: Sequence[str]) -> bool:
    from affect.data.config import Config

    config = parse(Config, content, where, options)
    _keep_freed_memory(config.run.device)
    from affect.engine.loop import train
    from affect.tasks.affectgpt import open_task

    return train(
        config,
        where,
        lambda accelerator, folder, checkpoint: open_task(
            config, accelerator, checkpoint is not None, fill_sentences, live_stores
        ),
    )


def _au_agent(content: dict[str, Any], where: str, options: Sequence[str]) -> bool:
    from affect.tasks.au_agent_config import AgentConfig

    config = parse(AgentConfig, content, where, options)
    from affect.tasks.au_agent import train_au_agent

    return train_au_agent(config, where)


def _expressions(content: dict[str, Any], where: str, options: Sequence[str]) -> bool:
    from affect.expressions.config import FerConfig

    config = parse(FerConfig, content, where, options)
    _keep_freed_memory(config.run.device)
    from affect.tasks.expressions import train_expressions

    return train_expressions(config, where)


def _keep_freed_memory(device: str) -> None:
    from affect.core.device import keep_freed_memory, pick_device

    if pick_device(device).type == "cpu":
        keep_freed_memory()


def fill_sentences(config: Config, split: str) -> None:
    """Let the AU agent write the sentences that AU JSON files lack."""
    from affect.cli.au_fill import fill_sentences as fill

    fill(config, split)


def live_stores(config: Config, device: str) -> tuple[Mapping[str, Any], Config]:
    """Return data set -> its encoders, where features are made when a clip is asked for, and fitting settings."""
    from affect.cli.live import live_stores as open_live
    from affect.cli.live import loader_settings

    stores = open_live(config, device)
    return stores, loader_settings(config, stores.values(), device)
