"""Train a model: python train.py --cfg-path train_configs/x.yaml [--options run.max_epoch=2 …]

`task:` in the file says what is trained: affectgpt, au_agent, or expressions (images of faces).

On several GPUs: torchrun --nproc-per-node 8 train.py --cfg-path train_configs/x.yaml
A run that was stopped goes on from its last checkpoint when the same command is given again. SIGTERM
lets it finish the step, write a checkpoint and leave with exit code 143; so does Ctrl-C, with 130, and a second
Ctrl-C ends it at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from affect.cli import add_offline
from affect.core.config import parse, read_yaml, task_name

if TYPE_CHECKING:
    from affect.data.config import Config


START = {
    "affectgpt": ("affect.data.config:Config", "affect.cli.train:train_affectgpt"),
    "au_agent": ("affect.tasks.au_agent_config:AgentConfig", "affect.tasks.au_agent:train_au_agent"),
    "expressions": ("affect.expressions.config:FerConfig", "affect.tasks.expressions:train_expressions"),
}
"""Task -> its settings, and what trains by them; each is imported when it is its turn."""


def main(arguments: list[str] | None = None) -> int:
    """Train as a file says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="YAML configuration")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    add_offline(parser)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    content = read_yaml(args.cfg_path)
    task = task_name(content, args.cfg_path)
    settings, start = START[task]
    from affect.data.manifest import require_table

    config = parse(resolve_name(settings), content, args.cfg_path, args.options)
    for name, section in getattr(config, "datasets", {}).items():
        require_table(name, section)
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.cfg_path}: training of {task} on {config.run.device}; loading libraries", flush=True)
    from affect.core.device import keep_freed_memory, pick_device
    from affect.engine.stop import EXIT_CODE

    if pick_device(config.run.device).type == "cpu":
        keep_freed_memory()
    return 0 if resolve_name(start)(config, args.cfg_path) else EXIT_CODE


def train_affectgpt(config: Config, cfg_path: str) -> bool:
    """Train with what extraction brings along; return False when SIGTERM ended it early, after a checkpoint."""
    from affect.engine.loop import train
    from affect.tasks.affectgpt import open_task

    return train(config, cfg_path, partial(open_task, config, fill_sentences, live_stores))


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
