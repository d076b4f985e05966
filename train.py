"""Train a model: python train.py --cfg-path train_configs/x.yaml [--options run.max_epoch=2 …]

On several GPUs: torchrun --nproc-per-node 8 train.py --cfg-path train_configs/x.yaml
A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import logging
import sys

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, set_seed

from affect.config import Config, load_config, save_config
from affect.data.dataset import TrainingSamples, open_datasets, query_tokens
from affect.data.prompts import load_prompts
from affect.layouts import LAYOUTS
from affect.models.affectgpt import build_affectgpt
from affect.train.checkpoint import find_checkpoint, load_weights, read_state, run_folder
from affect.train.loop import train

logger = logging.getLogger("affect")

PRECISION = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precision -> type of the frozen language model's weights."""


def main(arguments: list[str] | None = None) -> None:
    """Wire configuration, data, model and loop together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="YAML configuration")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    config = load_config(args.cfg_path, args.options)
    accelerator = start_accelerator(config)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    # the folder's name holds the time, so one process names it for all
    folder, checkpoint = broadcast_object_list(list(run_folder(config, args.cfg_path)))
    if checkpoint and read_state(checkpoint).epoch >= config.run.max_epoch:
        logger.info("%s: all epochs are done; for a new run use another run.output_dir", checkpoint)
        return
    datasets = open_datasets(config, "train")
    logger.info("training on %s", ", ".join(f"{len(dataset)} clips of {dataset.name}" for dataset in datasets))
    if config.run.check_features and accelerator.is_main_process:
        for dataset in datasets:
            dataset.check_arrays()
    accelerator.wait_for_everyone()
    set_seed(config.run.seed)
    layouts = [LAYOUTS[dataset.config.face_or_frame] for dataset in datasets]
    model = build_affectgpt(config.model, layouts, PRECISION[accelerator.mixed_precision])
    if config.model.ckpt:
        load_weights(find_checkpoint(config.model.ckpt), model)
    samples = TrainingSamples(
        datasets, load_prompts(config.model.prompt_file), query_tokens(config.model), config.run.seed
    )
    samples.check_answers()
    if accelerator.is_main_process:
        save_config(config, folder / "config.yaml")
        logger.info("run folder: %s", folder)
    train(config, model, samples, folder, checkpoint, accelerator)


def start_accelerator(config: Config) -> Accelerator:
    """Return the accelerator for the configured device and precision."""
    on_gpu = config.run.device != "cpu" and torch.cuda.is_available()
    if not on_gpu and (config.run.amp or config.run.device == "cuda"):
        logger.info("no GPU: training on the CPU in float32")
    half = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp16"
    return Accelerator(
        cpu=not on_gpu,
        mixed_precision=half if on_gpu and config.run.amp else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
