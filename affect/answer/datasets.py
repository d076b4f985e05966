"""The answers of a data set: those that its file lacks are made, written as they come, and shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from affect.answer.answerer import Answerer, with_action_units
from affect.answer.attention import AttentionWriter
from affect.answer.files import Answer, answer_settings, answers_path, resume_answers, write_answers, write_npz
from affect.core.au_json import find_au_json, read_au_json
from affect.data.dataset import ClipDataset
from affect.features.store import FeatureError

logger = logging.getLogger(__name__)

FIRST_CLIPS = 8
"""Clips of which one at least must have features that can be read."""


def check_features(dataset: ClipDataset) -> None:
    """Raise FeatureError where all clips lack a stream, or no array of the first clips that have one can be read.

    That shows a folder of another encoder, sampling or width before the first batch; a clip that is bad by itself
    is left to `Answerer.answer_dataset`.
    """
    names = [clip.name for clip in dataset.clips]
    for spec in dataset.specs.values():
        missing = set(dataset.store.missing(spec, names))
        there = [name for name in names if name not in missing]
        if names and not there:
            dataset.check()
        errors = []
        for name in there[:FIRST_CLIPS]:
            try:
                dataset.store.read(spec, name)
                break
            except FeatureError as error:
                errors.append(error)
        else:
            if errors:
                raise errors[0]


def answer_dataset(
    answerer: Answerer,
    dataset: ClipDataset,
    checkpoint: Path,
    kind: str,
    console: Console,
    overwrite: bool = False,
    attention: bool = False,
    shown: int = 5,
) -> None:
    """Answer the clips of a data set that have no answer yet; those that cannot be go to the answerer's failures.

    overwrite: make all anew; attention: keep what the pre-fusion read; shown: answers to print, and clips to draw.
    """
    answerer.check_prompt(dataset, kind)
    path = answers_path(answerer.config.inference.base_root, dataset.name, checkpoint, kind)
    settings = answer_settings(answerer.config, dataset.config, checkpoint, answerer.prompts, kind)
    done = resume_answers(path, settings, overwrite)
    left = replace(dataset, clips=[clip for clip in dataset.clips if clip.name not in done])
    if attention:
        answerer.look = AttentionWriter(answerer.model, path.with_name(f"{checkpoint.name}-attention"), shown)
        answerer.look.count_unseen(done)
    with left.ahead():
        count = write_answers(path, _shown(answerer.answer_dataset(left, kind), left, console, shown))
    write_npz(path)
    before = f" and {len(done)} from before" if done else ""
    console.print(f"{count} answers{before}: {path}", soft_wrap=True)


def _shown(answers: Iterator[Answer], dataset: ClipDataset, console: Console, shown: int) -> Iterator[Answer]:
    """Pass answers on, each with its action units where AU JSON is known; print the first ones."""
    progress = track(answers, f"answering {dataset.name}", total=len(dataset), console=console)
    for position, answer in enumerate(progress):
        answer = _with_units_of(dataset, answer)
        if position < shown:
            show(console, answer)
        yield answer


def _with_units_of(dataset: ClipDataset, answer: Answer) -> Answer:
    """Return an answer with the action units of its clip's AU JSON, if there is one."""
    root = dataset.config.mer_factory_output
    try:
        path = find_au_json(root, dataset.name, answer.name) if root else None
        return with_action_units(answer, read_au_json(path)) if path else answer
    except FileNotFoundError:
        return answer
    except ValueError as error:  # the answer does not rest on this file
        logger.warning("%s", error)
        return answer


def show(console: Console, answer: Answer) -> None:
    """Print one answer and what it rests on."""
    console.print(f"[bold]{escape(answer.name)}[/bold]  {escape(answer.answer)}", highlight=False)
    units = ", ".join(f"{unit} {value:.1f}" for unit, value in list(answer.action_units.items())[:6])
    rests = f"shown: {', '.join(answer.streams) or 'words only'}"
    if answer.missing:
        rests += f"; not in the clip: {', '.join(answer.missing)}"
    console.print(f"  [dim]{rests}{f'; action units: {units}' if units else ''}[/dim]", highlight=False)
