"""Answer "what does this person feel, and why?" for a data set or for one clip.

    python inference.py --cfg-path eval_configs/x.yaml
    python inference.py --cfg-path eval_configs/x.yaml --video a.mp4 --subtitle "I am fine." --openface_csv a.csv

Answers go to the screen and, with what they rest on, to JSON lines.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from affect.au_json import AuAnalysis, find_au_json, read_au_json
from affect.config import Config, ConfigError, DatasetConfig, load_config
from affect.data.dataset import ClipDataset, open_dataset
from affect.infer import LABELS, REASONING, Answer, Answerer, load_answerer, with_action_units, write_answers
from affect.layouts import LAYOUTS
from affect.schema import Clip
from affect.train.checkpoint import find_checkpoint, read_config
from extractors.au_text import describe_clips
from extractors.clip import Sources, extract_clip
from extractors.encoders import build_encoder
from extractors.openface import EXECUTABLE_VARIABLE


def main(arguments: list[str] | None = None) -> int:
    """Wire configuration, checkpoint, clips and answers together; return the exit code."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    asked = load_config(args.cfg_path, args.options)
    checkpoint = find_checkpoint(
        args.ckpt or ckpt_root(asked, args.cfg_path), asked.inference.ckpt_name, asked.inference.test_epoch
    )
    config = trained_config(asked, checkpoint, args.cfg_path)
    kind = LABELS if args.no_reasoning else REASONING
    console = Console()
    if args.video:
        sections = chosen_datasets(asked.datasets or config.datasets, args.dataset)
        section = config.inference.override(next(iter(sections.values())))
        answerer = load_answerer(config, checkpoint, section.face_or_frame)
        answers = [answer_clip(args, answerer, section, kind)]
        show(console, answers[0])
        write_answers(Path(config.inference.base_root) / "clips.jsonl", answers, append=True)
        return 0
    failures: list[tuple[str, str]] = []
    for name, section in chosen_datasets(asked.datasets or config.datasets, args.dataset).items():
        section = config.inference.override(section)
        dataset = open_dataset(name, section, config.model, config.inference.split)
        answerer = load_answerer(config, checkpoint, section.face_or_frame)
        folder = Path(f"{config.inference.base_root}-{name.lower()}") / checkpoint.parent.name
        path = folder / f"{checkpoint.name}-{kind}.jsonl"
        count = write_answers(path, answer_dataset(answerer, dataset, kind, console, args.show))
        console.print(f"{count} answers: {path}", soft_wrap=True)
        failures += answerer.failures
    return report_failures(failures, config, console)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg-path", required=True, help="YAML configuration; its inference section names the checkpoint")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    add("--ckpt", help="checkpoint folder, run folder or folder of runs; default: inference.ckpt_root")
    add("--dataset", help="one of the data sets of the file; default: all")
    add("--no_reasoning", action="store_true", help="labels only")
    add("--show", type=int, default=5, help="answers of a data set to print")
    add("--video", type=Path, help="answer for this clip instead of a data set")
    add("--audio", type=Path, help="its sound; default: that of the video")
    add("--subtitle", default="", help="the words spoken in it")
    add("--openface_csv", type=Path, help="its OpenFace table")
    add("--openface_executable", help=f"measure it with this binary; default: {EXECUTABLE_VARIABLE}")
    return parser.parse_args(arguments)


def chosen_datasets(datasets: dict[str, DatasetConfig], name: str | None) -> dict[str, DatasetConfig]:
    """Return the data set of a name, or all (raises ValueError when there is none of that name)."""
    if name is not None and name not in datasets:
        raise ValueError(f"--dataset {name}: expected one of {', '.join(datasets)}")
    return datasets if name is None else {name: datasets[name]}


def ckpt_root(config: Config, cfg_path: str) -> str:
    """Return where the checkpoint is (raises ConfigError when the file does not say)."""
    if config.inference.ckpt_root is None:
        raise ConfigError(
            f"{cfg_path}: inference.ckpt_root: expected the folder of a run, found nothing; or give --ckpt"
        )
    return config.inference.ckpt_root


def trained_config(asked: Config, checkpoint: Path, cfg_path: str) -> Config:
    """Return the checkpoint's own configuration with the asked inference section and language model.

    Raises ConfigError when the file's model section, where it says something, is not the checkpoint's.
    """
    trained = read_config(checkpoint)
    free = {"llama_model", "prompt_file", "ckpt", "lora_dropout", "max_length"}
    given = {key: getattr(asked.model, key) for key in asked.model.model_fields_set}
    faults = [
        f"{cfg_path}: model.{key}: the checkpoint {checkpoint} has {getattr(trained.model, key)!r}, found {value!r}"
        for key, value in given.items()
        if key not in free and not key.startswith("frozen_") and value != getattr(trained.model, key)
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    model = trained.model.model_copy(update={key: value for key, value in given.items() if key in free})
    return trained.model_copy(update={"model": model, "inference": asked.inference})


def answer_clip(args: argparse.Namespace, answerer: Answerer, section: DatasetConfig, kind: str) -> Answer:
    """Extract one clip's features as a data set's would be, and answer."""
    clip = Clip(name=args.video.stem, dataset="clip", subtitle=args.subtitle)
    sources = Sources(openface_executable=args.openface_executable or os.environ.get(EXECUTABLE_VARIABLE))
    streams = LAYOUTS[section.face_or_frame].needed
    specs = {stream: section.spec(stream, answerer.config.model.feature_dim(stream)) for stream in streams}
    device = str(next(answerer.model.parameters()).device)
    features, analysis = extract_clip(
        args.video,
        args.audio,
        args.openface_csv,
        sources,
        specs,
        describe_clips,
        lambda stream: build_encoder(stream, specs[stream].encoder, device),
        section.frame_sampling,
        section.frame_n_frms,
    )
    (answer,) = answerer.answer([clip], [features], kind)
    return with_action_units(answer, analysis) if analysis else answer


def answer_dataset(
    answerer: Answerer, dataset: ClipDataset, kind: str, console: Console, shown: int
) -> Iterator[Answer]:
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
    if not failures:
        return 0
    path = Path(f"{config.inference.base_root}-failures.csv")
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
