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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from affect.answer.answerer import (
    Answerer,
    check_features,
    check_layout,
    inference_device,
    load_model,
    use_checkpoint,
    with_action_units,
)
from affect.answer.attention import AttentionWriter, check_attention
from affect.answer.files import (
    LABELS,
    REASONING,
    Answer,
    answer_settings,
    answers_path,
    put_answer,
    resume_answers,
    write_answers,
    write_npz,
)
from affect.answer.setup import answered_datasets, find_checkpoints, trained_config
from affect.answer.vllm import VllmWriter
from affect.cli import answer_clip
from affect.cli.au_fill import fill_sentences
from affect.cli.live import open_store, warn_of_other_faces
from affect.core.au_json import AuAnalysis, find_au_json, read_au_json
from affect.core.layouts import LAYOUTS
from affect.core.schema import Modality
from affect.data.config import Config, ConfigError, DatasetConfig, load_config
from affect.data.dataset import ClipDataset
from affect.data.known_datasets import dataset_name
from affect.data.manifest import read_clips
from affect.expressions.config import is_fer_config
from affect.models.affectgpt import AffectGPT
from extractors.run.live import LiveFeatures


def main(arguments: list[str] | None = None) -> int:
    """Wire configuration, checkpoints, clips and answers together; return the exit code."""
    if asks_for_expressions(arguments):
        from affect.cli import expressions

        return expressions.main(arguments)
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    given = {key: getattr(args, key) for key in ("test_epochs", "skip_epoch")}
    flags = [f"inference.{key}={value}" for key, value in given.items() if value is not None]
    if args.test_epochs is not None:  # what is typed counts before the file's one epoch
        flags.append("inference.test_epoch=null")
    asked = load_config(args.cfg_path, [*args.options, *flags])
    asked.inference.device, asked.inference.gpu = str(inference_device(asked.inference)), None
    checkpoints = find_checkpoints(args.ckpt or ckpt_root(asked, args.cfg_path), asked.inference)
    config = trained_config(asked, checkpoints[-1], args.cfg_path)
    sections = answered_datasets(asked, config, args.dataset)
    for section in sections.values():
        check_layout(config, checkpoints[-1], section.face_or_frame)
        if args.attention:
            check_attention(config.model, section.face_or_frame)
    console = Console()
    if args.video:
        section = next(iter(sections.values()))
        model = load_model(config, checkpoints[-1])
        answerer = Answerer(model, config, section.face_or_frame, writer_of(config, model, checkpoints[-1]))
        folder = Path(config.inference.base_root)
        if args.attention:
            answerer.look = AttentionWriter(model, folder / "clips-attention")
        answer = answer_clip.answer_clip(args, answerer, section, LABELS if args.no_reasoning else REASONING)
        show(console, answer)
        put_answer(folder / "clips.jsonl", answer)
        return 0
    datasets = open_datasets(config, sections)
    return answer_datasets(args, config, checkpoints, datasets, console)


def asks_for_expressions(arguments: list[str] | None) -> bool:
    """Tell whether the configuration on the command line is one of the image track."""
    peek = argparse.ArgumentParser(add_help=False)
    peek.add_argument("--cfg-path", default="")
    return is_fer_config(peek.parse_known_args(arguments)[0].cfg_path)


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


def ckpt_root(config: Config, cfg_path: str) -> str:
    """Return where the checkpoint is (raises ConfigError when the file does not say)."""
    if config.inference.ckpt_root is None:
        raise ConfigError(
            f"{cfg_path}: inference.ckpt_root: expected the folder of a run, found nothing; or give --ckpt"
        )
    return config.inference.ckpt_root


def open_datasets(config: Config, sections: dict[str, DatasetConfig]) -> list[ClipDataset]:
    """Return the data sets to answer, their features found to be those that the sections name.

    AU sentences that are missing are made first, where the configuration wants that.
    """
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
    if config.inference.backend == "vllm" and len(checkpoints) > 1:
        raise ConfigError(
            f"inference.backend vllm answers with one checkpoint, found {len(checkpoints)} in inference.test_epochs; "
            "run inference.py once for each test_epoch, or set backend to hf"
        )
    failures: list[tuple[str, str]] = []
    model = load_model(config, checkpoints[0])
    writer = writer_of(config, model, checkpoints[0])
    for checkpoint in checkpoints:
        if checkpoint != checkpoints[0]:
            use_checkpoint(model, checkpoint)
        for dataset in datasets:
            answerer = Answerer(model, config, dataset.config.face_or_frame, writer)
            failures += answer_dataset(args, answerer, checkpoint, dataset, console)
    return report_failures(list(dict.fromkeys(failures)), config, console)


def writer_of(config: Config, model: AffectGPT, checkpoint: Path) -> VllmWriter | None:
    """Return what writes the answers in the model's stead, if anything."""
    if config.inference.backend == "hf":
        return None
    return VllmWriter(model, checkpoint, config.inference.max_new_tokens)


def answer_dataset(
    args: argparse.Namespace, answerer: Answerer, checkpoint: Path, dataset: ClipDataset, console: Console
) -> list[tuple[str, str]]:
    """Answer the clips of a data set that have no answer yet; return those that could not be answered, and why."""
    kind, config = LABELS if args.no_reasoning else REASONING, answerer.config
    answerer.check_prompt(dataset, kind)
    path = answers_path(config.inference.base_root, dataset.name, checkpoint, kind)
    settings = answer_settings(config, dataset.config, checkpoint, answerer.prompts, kind)
    done = resume_answers(path, settings, args.overwrite)
    left = replace(dataset, clips=[clip for clip in dataset.clips if clip.name not in done])
    if args.attention:
        answerer.look = AttentionWriter(answerer.model, path.with_name(f"{checkpoint.name}-attention"), args.show)
        answerer.look.count_unseen(done)
    live = isinstance(left.store, LiveFeatures)
    with left.store.ahead([clip.name for clip in left.clips]) if live else nullcontext():
        count = write_answers(path, answers_of(answerer, left, kind, console, args.show))
    write_npz(path)
    before = f" and {len(done)} from before" if done else ""
    console.print(f"{count} answers{before}: {path}", soft_wrap=True)
    return answerer.failures


def answers_of(answerer: Answerer, dataset: ClipDataset, kind: str, console: Console, shown: int) -> Iterator[Answer]:
    """Answer every clip of a data set, each with its action units where AU JSON is known; print the first ones."""
    root = dataset.config.mer_factory_output
    answers = answerer.answer_dataset(dataset, kind)
    progress = track(answers, f"answering {dataset.name}", total=len(dataset), console=console)
    for position, answer in enumerate(progress):
        if root:
            answer = with_action_units_of(root, dataset.name, answer)
        if position < shown:
            show(console, answer)
        yield answer


def report_failures(failures: list[tuple[str, str]], config: Config, console: Console) -> int:
    """List the clips that could not be answered in a table and return the exit code."""
    path = Path(f"{config.inference.base_root}-failures.csv")
    if not failures:
        path.unlink(missing_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(failures, columns=["clip", "reason"]).to_csv(path, index=False)
    console.print(f"{len(failures)} clips could not be answered: {path}", soft_wrap=True)
    return 1


def with_action_units_of(root: str, dataset: str, answer: Answer) -> Answer:
    """Return an answer with the action units of its clip's AU JSON, if there is one."""
    try:
        analysis: AuAnalysis = read_au_json(find_au_json(root, dataset, answer.name))
    except FileNotFoundError:
        return answer
    except ValueError as error:  # the answer does not rest on this file
        logging.warning("%s", error)
        return answer
    return with_action_units(answer, analysis)


def show(console: Console, answer: Answer) -> None:
    """Print one answer and what it rests on."""
    console.print(f"[bold]{escape(answer.name)}[/bold]  {escape(answer.answer)}", highlight=False)
    units = ", ".join(f"{unit} {value:.1f}" for unit, value in list(answer.action_units.items())[:6])
    rests = f"shown: {', '.join(answer.streams) or 'words only'}"
    if answer.missing:
        rests += f"; not in the clip: {', '.join(answer.missing)}"
    console.print(f"  [dim]{rests}{f'; action units: {units}' if units else ''}[/dim]", highlight=False)
