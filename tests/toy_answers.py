"""What tests of answers share: a trained tiny model, a file that asks for its answers, and the answers."""

import json
from pathlib import Path

from affect.answer.answerer import Answerer, open_answerer
from affect.answer.setup import check_layout
from affect.cli import train
from affect.data.config import Config, DatasetConfig, save_config


def train_tiny(config: Config, folder: Path, epochs: int = 1) -> Path:
    """Train for some epochs of one step each; return a file that asks for answers to the test split."""
    run = config.run
    run.max_epoch, run.iters_per_epoch, run.warmup_steps, run.keep_checkpoints = epochs, 1, 0, epochs
    save_config(config, folder / "train.yaml")
    train.main(["--cfg-path", str(folder / "train.yaml")])
    return evaluation_file(folder)


def load_answerer(config: Config, checkpoint: Path, layout: str) -> Answerer:
    """Return the model of a checkpoint, ready to answer in a layout."""
    check_layout(config, checkpoint, DatasetConfig(face_or_frame=layout))
    return open_answerer(config, checkpoint, layout)


def evaluation_file(folder: Path) -> Path:
    path = folder / "eval.yaml"
    places = f"ckpt_root: {folder / 'run'}, base_root: {folder / 'results'}"
    path.write_text(f"inference: {{{places}, max_new_tokens: 5, device: cpu}}")
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers_file(folder: Path, dataset: str = "toy", kind: str = "description", epoch: int = 1) -> Path:
    (file,) = (folder / f"results-{dataset}" / "run").glob(f"checkpoint_{epoch:06d}_*-{kind}.jsonl")
    return file
