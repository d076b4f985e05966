"""Answer "what does this person feel, and why?" for a data set or for one clip.

    python inference.py --cfg-path eval_configs/x.yaml
    python inference.py --cfg-path eval_configs/x.yaml --dataset mer2023 --test_epochs 10-30 --skip_epoch 5
    python inference.py --cfg-path eval_configs/x.yaml --video a.mp4 --subtitle "I am fine." --openface_csv a.csv
    python inference.py --cfg-path eval_configs/fer.yaml --ckpt runs/x --images a.jpg b.png faces (its own --help)

Answers go to the screen and, with what they rest on, to JSON lines; a run that was stopped goes on with the clips
that have no answer yet. A configuration with `task: fer` names the expressions of faces instead.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from affect.cli import answer_clip

if TYPE_CHECKING:  # --help opens at once
    from rich.console import Console

    from affect.data.config import Config, DatasetConfig
    from affect.data.dataset import ClipDataset


def main(arguments: list[str] | None = None) -> int:
    """Wire configuration, checkpoints, clips and answers together; return the exit code: 1 where some clips failed."""
    if asks_for_expressions(arguments):
        from affect.cli import expressions

        return expressions.main(arguments)
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from rich.console import Console

    from affect.answer.attention import check_attention
    from affect.answer.loading import check_layout, inference_device
    from affect.answer.setup import answered_datasets, ckpt_root, find_checkpoints, trained_config
    from affect.data.config import load_config

    asked = load_config(args.cfg_path, options_of(args))
    asked.inference.device, asked.inference.gpu = str(inference_device(asked.inference)), None
    checkpoints = find_checkpoints(args.ckpt or ckpt_root(asked, args.cfg_path), asked.inference)
    config = trained_config(asked, checkpoints[-1], args.cfg_path)
    sections = answered_datasets(asked, config, args.dataset)
    for section in sections.values():
        check_layout(config, checkpoints[-1], section.face_or_frame)
        if args.attention:
            check_attention(config.model, section.face_or_frame)
    if args.video:
        return answer_one_clip(args, config, checkpoints[-1], next(iter(sections.values())), Console())
    return answer_datasets(args, config, checkpoints, open_datasets(config, sections), Console())


def asks_for_expressions(arguments: list[str] | None) -> bool:
    """Tell whether the configuration on the command line is one of the image track."""
    from affect.core.config import read_yaml, task_name

    peek = argparse.ArgumentParser(add_help=False)
    peek.add_argument("--cfg-path", default="")
    path = peek.parse_known_args(arguments)[0].cfg_path
    return bool(path) and task_name(read_yaml(path), path) == "expressions"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg-path", required=True, help="YAML configuration; its inference section names the checkpoint")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    add("--ckpt", help="checkpoint folder, run folder or folder of runs; default: inference.ckpt_root")
    add("--test_epochs", metavar="10-30", help="answer with every checkpoint of these epochs")
    add("--skip_epoch", type=int, metavar="N", help="of those, only epochs that N divides")
    add("--dataset", help="one of the data sets of the file, or a known one; default: all of the file")
    add("--no_reasoning", "--zeroshot", action="store_true", help="labels only")
    add("--overwrite", action="store_true", help="make answers anew that are there")
    add("--attention", action="store_true", help="keep and draw what the queries of the pre-fusion read of each clip")
    add("--show", type=int, default=5, help="answers of a data set to print, and clips to draw the attention of")
    answer_clip.add_arguments(parser)
    args = parser.parse_args(arguments)
    answer_clip.check_arguments(parser, args)
    return args


def options_of(args: argparse.Namespace) -> list[str]:
    """Return what the command line sets over the file; what is typed counts before the file's one epoch."""
    given = {key: getattr(args, key) for key in ("test_epochs", "skip_epoch")}
    flags = [f"inference.{key}={value}" for key, value in given.items() if value is not None]
    return [*args.options, *flags, *(["inference.test_epoch=null"] if args.test_epochs is not None else [])]


def open_datasets(config: Config, sections: dict[str, DatasetConfig]) -> list[ClipDataset]:
    """Return the data sets to answer, their features found to be those that the sections name.

    AU sentences that are missing are made first, where the configuration wants that.
    """
    from affect.answer.datasets import check_features
    from affect.cli.au_fill import fill_sentences
    from affect.cli.live import open_store, warn_of_other_faces
    from affect.core.layouts import LAYOUTS
    from affect.core.schema import Modality
    from affect.data.dataset import ClipDataset
    from affect.data.known_datasets import dataset_name
    from affect.data.manifest import read_clips
    from extractors.run.live import LiveFeatures

    inference, model = config.inference, config.model
    realtime_au = inference.use_au_clip_realtime
    fill_sentences(config.model_copy(update={"datasets": sections}), inference.split, realtime_au)
    datasets = []
    for name, section in sections.items():
        dataset = ClipDataset(
            name=dataset_name(name),
            clips=read_clips(name, section, inference.split),
            config=section,
            store=open_store(name, section, model, inference.device, realtime_au),
            specs={
                stream: section.spec(stream, model.feature_dim(stream))
                for stream in LAYOUTS[section.face_or_frame].needed
            },
        )
        check_features(dataset)
        if isinstance(dataset.store, LiveFeatures) and Modality.FACE in dataset.store.specs:
            warn_of_other_faces(config, dataset.store.faces_from)
        datasets.append(dataset)
    return datasets


def answer_datasets(
    args: argparse.Namespace, config: Config, checkpoints: list[Path], datasets: list[ClipDataset], console: Console
) -> int:
    """Answer every data set with every checkpoint, each into a file of its own; return the exit code."""
    from affect.answer.answerer import Answerer
    from affect.answer.datasets import answer_dataset
    from affect.answer.files import LABELS, REASONING
    from affect.answer.loading import load_model, open_writer, use_checkpoint
    from affect.core.failures import write_failures
    from affect.data.config import ConfigError

    if config.inference.backend == "vllm" and len(checkpoints) > 1:
        raise ConfigError(
            f"inference.backend vllm answers with one checkpoint, found {len(checkpoints)} in inference.test_epochs; "
            "run inference.py once for each test_epoch, or set backend to hf"
        )
    kind, failures = LABELS if args.no_reasoning else REASONING, {}
    model = load_model(config, checkpoints[0])
    writer = open_writer(config, model, checkpoints[0])
    for checkpoint in checkpoints:
        if checkpoint != checkpoints[0]:
            use_checkpoint(model, checkpoint)
        for dataset in datasets:
            answerer = Answerer(model, config, dataset.config.face_or_frame, writer)
            answer_dataset(answerer, dataset, checkpoint, kind, console, args.overwrite, args.attention, args.show)
            failures |= dict.fromkeys(answerer.failures)
    path = Path(f"{config.inference.base_root}-failures.csv")
    if write_failures(path, failures, "clip", empty=False):
        console.print(f"{len(failures)} clips could not be answered: {path}", soft_wrap=True)
    return int(bool(failures))


def answer_one_clip(
    args: argparse.Namespace, config: Config, checkpoint: Path, section: DatasetConfig, console: Console
) -> int:
    """Answer for the clip of --video; its answer takes the place of the one that it had; return the exit code."""
    from affect.answer.answerer import Answerer
    from affect.answer.attention import AttentionWriter
    from affect.answer.datasets import show
    from affect.answer.files import LABELS, REASONING, put_answer
    from affect.answer.loading import load_model, open_writer

    folder, model = Path(config.inference.base_root), load_model(config, checkpoint)
    look = AttentionWriter(model, folder / "clips-attention") if args.attention else None
    answerer = Answerer(model, config, section.face_or_frame, open_writer(config, model, checkpoint), look)
    answer = answer_clip.answer_clip(args, answerer, section, LABELS if args.no_reasoning else REASONING)
    show(console, answer)
    put_answer(folder / "clips.jsonl", answer)
    return 0
