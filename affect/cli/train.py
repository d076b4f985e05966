"""Train a model: python train.py --cfg-path train_configs/x.yaml [--options run.max_epoch=2 …]

Files with `task: fer` train networks that name expressions of images (affect/tasks/expressions.py).

On several GPUs: torchrun --nproc-per-node 8 train.py --cfg-path train_configs/x.yaml
A run that was stopped goes on from its last checkpoint when the same command is given again. SIGTERM
lets it finish the step, write a checkpoint and leave with exit code 143.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from affect.core.layouts import LAYOUTS
from affect.data.collate import Collator
from affect.data.config import Config, load_config, save_config
from affect.data.dataset import TrainingSamples, open_datasets, query_tokens
from affect.data.prompts import load_prompts
from affect.engine.checkpoint import find_checkpoint, load_weights, read_state, run_folder
from affect.engine.launch import PRECISION, check_trackers, start_accelerator
from affect.engine.loop import train
from affect.engine.stop import EXIT_CODE
from affect.expressions.config import is_fer_config
from affect.features.store import FeatureStore
from affect.models.affectgpt import build_affectgpt

logger = logging.getLogger("affect")


def main(arguments: list[str] | None = None) -> int:
    """Wire configuration, data, model and loop together; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="YAML configuration")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if trains_au_agent(args.cfg_path):
        from affect.tasks.au_agent import train_au_agent

        return 0 if train_au_agent(args.cfg_path, args.options) else EXIT_CODE
    if is_fer_config(args.cfg_path):
        from affect.tasks.expressions import train_expressions

        return 0 if train_expressions(args.cfg_path, args.options) else EXIT_CODE
    config = load_config(args.cfg_path, args.options)
    check_trackers(config.run)
    accelerator = start_accelerator(config.run)
    if config.model.load_in_4bit and accelerator.device.type != "cuda":
        raise ValueError(f"model.load_in_4bit needs a GPU, found run.device {accelerator.device}; set it to False")
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    # the folder's name holds the time, so one process names it for all
    folder, checkpoint = broadcast_object_list(list(run_folder(config, args.cfg_path)))
    if checkpoint and is_done(checkpoint, folder, config):
        reason = read_state(checkpoint).reason or "all epochs are done"
        logger.info("%s: %s; for a new run use another run.output_dir", checkpoint, reason)
        return 0
    samples, held_out = open_samples(config, accelerator)
    if not all(section.use_preextracted_features for section in config.datasets.values()):
        from affect.cli.live import loader_settings

        config = loader_settings(config, (dataset.store for dataset in samples.datasets), str(accelerator.device))
    set_seed(config.run.seed)
    layouts = [LAYOUTS[dataset.config.face_or_frame] for dataset in samples.datasets]
    dtype = PRECISION[accelerator.mixed_precision]
    model = build_affectgpt(config.model, layouts, dtype, config.run.gradient_checkpointing)
    samples.check_prompts(Collator(model.tokenizer, config.model.max_length))
    if config.model.ckpt:
        load_weights(find_checkpoint(config.model.ckpt), model)
    if accelerator.is_main_process:
        save_config(config, folder / "config.yaml")
        logger.info("run folder: %s", folder)
    state = train(config, model, samples, folder, checkpoint, accelerator, held_out)
    return 0 if state.finished else EXIT_CODE


def trains_au_agent(cfg_path: str) -> bool:
    """Tell whether a file fine-tunes the AU agent's language model, in LLaMA-Factory's words."""
    try:
        content = yaml.safe_load(Path(cfg_path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # load_config says what is wrong with it
    return isinstance(content, dict) and "model_name_or_path" in content and content.get("stage") == "sft"


def is_done(checkpoint: Path, folder: Path, config: Config) -> bool:
    """Tell whether the run of `folder` has nothing left to do after a checkpoint."""
    state = read_state(checkpoint)
    return state.epoch >= config.run.max_epoch or (state.finished and checkpoint.parent == folder)


def open_samples(config: Config, accelerator: Accelerator) -> tuple[TrainingSamples, TrainingSamples | None]:
    """Return the training split and, where one is named, the validation split, their features and labels checked."""
    splits = ["train", *([config.run.val_split] if config.run.val_split else [])]
    if config.model.use_au_agent and accelerator.is_main_process:
        from affect.cli.au_fill import fill_sentences

        for split in splits:
            fill_sentences(config, split)
    accelerator.wait_for_everyone()
    stores = {}
    if not all(d.use_preextracted_features for d in config.datasets.values()):
        from affect.cli.live import live_stores

        stores = live_stores(config, str(accelerator.device))
    prompts, tokens = load_prompts(config.model.prompt_file), query_tokens(config.model)
    opened = []
    for split in splits:
        datasets = open_datasets(config, split, stores)
        logger.info("%s: %s", split, ", ".join(f"{len(dataset)} clips of {dataset.name}" for dataset in datasets))
        if config.run.check_features and accelerator.is_main_process:
            for dataset in datasets:
                if isinstance(dataset.store, FeatureStore):  # others would encode every clip
                    dataset.check_arrays()
        samples = TrainingSamples(datasets, prompts, tokens, config.run.seed)
        samples.check_answers()
        opened.append(samples)
    accelerator.wait_for_everyone()
    if len(opened) == 1:
        return opened[0], None
    warn_of_common_clips(*opened)
    return opened[0], opened[1]


def warn_of_common_clips(samples: TrainingSamples, held_out: TrainingSamples) -> None:
    """Say so where the validation split has clips that are trained on: its loss then tells little."""
    trained, held = ({(d.name, clip.name) for d in part.datasets for clip in d.clips} for part in (samples, held_out))
    if common := trained & held:
        logger.warning(
            "run.val_split: %d of its %d clips are trained on, too, e.g. %s; give the table a split column that "
            "parts them",
            len(common),
            len(held),
            min(common)[1],
        )
