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

from affect.cli import add_offline, answer_clip

if TYPE_CHECKING:  # --help opens at once
    from affect.data.config import Config, DatasetConfig
    from affect.data.dataset import ClipDataset


def main(arguments: list[str] | None = None) -> int:
    """Wire configuration, checkpoints, clips and answers together; return the exit code: 1 where some clips failed."""
    if asks_for_expressions(arguments):
        from affect.cli import expressions

        return expressions.main(arguments)
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from affect.data.config import load_config

    asked = load_config(args.cfg_path, options_of(args))
    print(f"{args.cfg_path}: answering {args.video or 'data sets'}; loading libraries", flush=True)
    from affect.answer.attention import check_attention
    from affect.answer.files import LABELS, REASONING
    from affect.answer.setup import answered_datasets, check_layout, find_checkpoints, inference_device, trained_config

    asked.inference.device, asked.inference.gpu = str(inference_device(asked.inference)), None
    checkpoints = find_checkpoints(args.ckpt, asked.inference)
    config = trained_config(asked, checkpoints[-1], args.cfg_path)
    sections = answered_datasets(asked, config, args.dataset)
    for section in sections.values():
        check_layout(config, checkpoints[-1], section)
        if args.attention:
            check_attention(config.model, section.face_or_frame)
    kind = LABELS if args.no_reasoning else REASONING
    if args.video:
        return answer_one_clip(args, config, checkpoints[-1], next(iter(sections.values())), kind)
    return answer_all(args, config, checkpoints, open_datasets(config, sections), kind)


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
    add_offline(parser)
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
    from affect.answer.answerer import check_features
    from affect.cli.au_fill import fill_sentences
    from affect.cli.live import like_training, open_store, warn_of_other_features
    from affect.data.dataset import open_dataset

    inference, model = config.inference, config.model
    fill_sentences(config.model_copy(update={"datasets": sections}), inference.split)
    datasets = []
    for name, section in sections.items():
        dataset = open_dataset(name, section, model, inference.split)
        dataset.store = open_store(name, like_training(config, section), model, inference.device)
        check_features(dataset)
        found = {stream: dataset.store.provenance(spec) for stream, spec in dataset.specs.items()}
        warn_of_other_features(config, found)
        datasets.append(dataset)
    return datasets


def answer_all(
    args: argparse.Namespace, config: Config, checkpoints: list[Path], datasets: list[ClipDataset], kind: str
) -> int:
    """Answer every data set with every checkpoint, each into a file of its own; return the exit code."""
    from rich.console import Console

    from affect.answer.answerer import answer_datasets
    from affect.core.failures import failure_lines, write_failures

    console = Console()
    failures = answer_datasets(
        config, checkpoints, datasets, kind, console, args.overwrite, args.attention, shown=args.show
    )
    path = Path(f"{config.inference.base_root}-failures.csv")
    if write_failures(path, failures, "clip", empty=False):
        for line in (*failure_lines(failures), f"{len(failures)} clips could not be answered: {path}"):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    return int(bool(failures))


def answer_one_clip(
    args: argparse.Namespace, config: Config, checkpoint: Path, section: DatasetConfig, kind: str
) -> int:
    """Answer for the clip of --video; its answer takes the place of the one that it had; return the exit code."""
    from rich.console import Console

    from affect.answer.answerer import open_answerer, show
    from affect.answer.files import put_answer

    if args.nonverbal_text is not None and not section.captioned:
        raise ValueError(
            f"--nonverbal_text: expected a layout with action units as text, found {section.face_or_frame} without; "
            "answer with a checkpoint that was trained with use_nonverbal_text"
        )
    folder, console = Path(config.inference.base_root), Console()
    attention = folder / "clips-attention" if args.attention else None
    answerer = open_answerer(config, checkpoint, section.face_or_frame, attention)
    answer = answer_clip.answer_clip(args, answerer, section, kind)
    show(console, answer)
    put_answer(folder / "clips.jsonl", answer)
    console.print(f"1 answer: {folder / 'clips.jsonl'}", soft_wrap=True)
    return 0
