"""MER-UniBench: nine test sets, three kinds of score, and which checkpoint's score is reported.

Lian et al., 2025 (arXiv:2501.16566). The published rule takes for each test set the checkpoint that is best on that
very test set, which flatters every system; the honest one takes one checkpoint for all, the last, or the best
on a validation set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from affect.data.manifest import read_table
from affect.evaluate.answers import split_labels
from affect.evaluate.emotion_wheel import EmotionWheels, ew_scores, hit_scores
from affect.evaluate.errors import LabelError, NothingToScoreError, ScoreError, clips_have
from affect.evaluate.results import Labelled, read_arrays, read_labels, read_object, read_records, read_sentiments
from affect.evaluate.sentiment import sentiment_scores
from affect.evaluate.tally import Tally
from affect.evaluate.vocabulary import Vocabulary


class Task(StrEnum):
    """Kind of score."""

    HIT_RATE = "hitrate"
    SENTIMENT = "sentiment"
    EW = "ew"


@dataclass(frozen=True)
class TestSet:
    """What is known of a test set beforehand."""

    task: Task
    clips: int | None = None
    """Clips of the published test set."""
    classes: tuple[str, ...] = ()
    """Words that integer labels stand for."""
    also: tuple[str, ...] = ()
    """Other names that it goes by, in lower case."""

    __test__ = False  # pytest: this is no test


BENCHMARK: dict[str, TestSet] = {
    "MER2023": TestSet(Task.HIT_RATE, 411),
    "MER2024": TestSet(Task.HIT_RATE, 1169),
    "MELD": TestSet(Task.HIT_RATE, 2610, ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")),
    "IEMOCAP": TestSet(Task.HIT_RATE, 1241, ("happy", "sad", "neutral", "anger"), ("iemocapfour",)),
    "MOSI": TestSet(Task.SENTIMENT, 686, also=("cmumosi",)),
    "MOSEI": TestSet(Task.SENTIMENT, 4659, also=("cmumosei",)),
    "SIMS": TestSet(Task.SENTIMENT, 457),
    "SIMSv2": TestSet(Task.SENTIMENT, 1034),
    "OV-MERD+": TestSet(Task.EW, 532, also=("ovmerdplus", "ovmerd+")),
}
"""Name -> test set, in the order of the published tables."""

_CHECKPOINT = re.compile(r"checkpoint_(\d+)")
_ANSWERS = re.compile(r"(?P<checkpoint>.+?)(?:-(?P<kind>description|ovlabel)\.(?:jsonl|npz)|\.npz)")


@dataclass(frozen=True)
class Truth:
    """The labels of one test set."""

    dataset: str
    task: Task
    labels: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """The scores of one checkpoint on one test set."""

    values: dict[str, float]
    """The first one counts in the benchmark."""
    n: int
    """Clips that count; each wheel may leave out more."""
    clips: int
    """Clips of the test set."""
    tally: Tally
    labels_from: str = ""

    @property
    def first(self) -> float:
        """The score that counts: hitrate, waf or fscore."""
        return next(iter(self.values.values()))


Results = dict[str, dict[str, Score]]
"""Test set -> checkpoint -> scores."""


def score(task: Task, truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels) -> Score:
    """Return a task's scores of name -> labels (or sentiment word) against name -> label (or valence)."""
    if task == Task.SENTIMENT:
        scores = sentiment_scores(truth, answers)
        return Score({"waf": scores.waf, "acc": scores.acc}, scores.n, len(truth), scores.tally)
    scores = hit_scores(truth, answers, wheels) if task == Task.HIT_RATE else ew_scores(truth, answers, wheels)
    return Score(scores.means, len(truth), len(truth), scores.tally)


def best_on_test(scores: Mapping[str, float]) -> str:
    """Return the checkpoint that the published rule takes: the highest score, ties to the first name, NaN above all.

    Raises NothingToScoreError when there is no checkpoint.
    """
    if not scores:
        raise NothingToScoreError("no checkpoint has answers: expected at least one to choose from")
    names = sorted(scores)
    return names[int(np.argmax([scores[name] for name in names]))]


def one_for_all(scores: Mapping[str, Mapping[str, float]], validation: Mapping[str, float] | None = None) -> str:
    """Return the one checkpoint that the honest rule takes: the best on the validation set, or else the last.

    scores: test set -> checkpoint -> score. Raises NothingToScoreError when no checkpoint is scored everywhere.
    """
    everywhere = set.intersection(*(set(by_checkpoint) for by_checkpoint in scores.values())) if scores else set()
    if validation is not None:
        everywhere = {name for name in everywhere if validation.get(name, np.nan) == validation.get(name)}
    if not everywhere:
        raise NothingToScoreError("no checkpoint has answers to every data set: expected one that does; make them")
    if validation is None:
        return max(everywhere, key=lambda name: (epoch_of(name), name))
    return max(sorted(everywhere), key=validation.__getitem__)


def epoch_of(checkpoint: str) -> int:
    """Return the epoch in a checkpoint's name, 0 where it names none."""
    match = _CHECKPOINT.search(checkpoint)
    return int(match[1]) if match else 0


def read_truths(path: str | Path) -> list[Truth]:
    """Return the labels of every test set that a JSON object names, each under its name in `BENCHMARK`.

    The object has test set -> name -> label, or -> path (relative to the file) of a label file as `read_truth` reads
    it. A set that is not of the benchmark, such as one for validation, says what it is:
    {"task": "hitrate" | "sentiment" | "ew", "labels": names and labels, or a path}. Raises ScoreError.
    """
    path, truths = Path(path), []
    names = {other: name for name, known in BENCHMARK.items() for other in (name.lower(), *known.also)}
    for given, entry in read_object(path).items():
        dataset = names.get(given.lower(), given)
        known = BENCHMARK.get(dataset)
        task = known.task if known else None
        if isinstance(entry, dict) and set(entry) == {"task", "labels"}:
            task, entry = entry["task"], entry["labels"]
        if task not in set(Task) or not isinstance(entry, dict | str):
            raise ScoreError(
                f"{path}: {dataset}: expected names and labels, or a path, for one of {', '.join(BENCHMARK)}; or "
                f'{{"task": one of {", ".join(Task)}, "labels": …}} for another set'
            )
        labels = _read_labels(path.parent / entry, Task(task)) if isinstance(entry, str) else entry
        words = {name: _word(label, known) for name, label in labels.items()}
        truths.append(Truth(dataset, Task(task), _with_labels(words, f"{path}: {dataset}")))
    return truths


def read_truth(path: str | Path, task: Task) -> dict[str, Any]:
    """Return name -> label of the test clips of a label file.

    path: a JSON object, JSON lines with `labels`, a table with name and openset (OV-MERD+), or the .npz label
    file of another test set. Raises ScoreError when it is none of them, LabelError when a clip has NaN for a label.
    """
    return _with_labels(_read_labels(Path(path), task), str(path))


def _with_labels(labels: dict[str, Any], where: str) -> dict[str, Any]:
    """Return name -> label (raises LabelError when some are NaN or null)."""
    if bad := [name for name, label in labels.items() if label is None or label != label]:
        raise LabelError(
            f"{where}: {clips_have(bad)} NaN for a label: expected a label for every clip; correct it or leave "
            "the clip out"
        )
    return labels


def _read_labels(path: Path, task: Task) -> dict[str, Any]:
    if path.suffix == ".jsonl":
        return {record["name"]: record["labels"] for record in read_records(path, "name", "labels")}
    if path.suffix == ".csv":
        rows = read_table(path)
        if not {"name", "openset"} <= set(rows):
            raise ScoreError(f"{path}: expected columns name and openset, found {', '.join(rows)}; name another table")
        labels = (", ".join(split_labels(cell) or ["neutral"]) for cell in rows["openset"])
        return dict(zip(rows["name"], labels, strict=True))
    if path.suffix != ".npz":
        return read_object(path)
    corpora = read_arrays(path)
    corpus = next((corpora[key] for key in ("test1_corpus", "test_corpus", "whole_corpus") if key in corpora), None)
    key = "val" if task == Task.SENTIMENT else "emo"
    if not isinstance(corpus, dict) or not all(isinstance(clip, dict) and key in clip for clip in corpus.values()):
        raise ScoreError(
            f"{path}: expected test1_corpus, test_corpus or whole_corpus with {key!r} for each clip, found "
            f"{', '.join(corpora)}; name the label file of a test set"
        )
    # IEMOCAP's file holds all five sessions, of which the last is the test set: Ses05F_impro01_F000
    tested = {name: clip for name, clip in corpus.items() if "whole_corpus" not in corpora or name[4:5] == "5"}
    return {name: clip[key] for name, clip in tested.items()}


def _word(label: Any, known: TestSet | None) -> Any:
    """Return a label, the word for it where it is the number of a class."""
    classes = known.classes if known else ()
    if not classes or not isinstance(label, Integral):
        return label
    if not 0 <= label < len(classes):
        raise LabelError(f"label {label}: expected one of 0 to {len(classes) - 1} ({', '.join(classes)})")
    return classes[label]


def find_answers(
    root: str | Path, dataset: str, run: str | None = None, kind: str = "description", epochs: Sequence[int] = ()
) -> dict[str, Path]:
    """Return checkpoint -> file of the answers to a test set: {root}-{dataset}/{run}/{checkpoint}.

    The files are this project's JSON lines of one kind of question or the published .npz; those of labels and
    sentiments are not answers. run: needed where there are several; epochs: those to keep (default: all).
    Raises ScoreError when there are none.
    """
    also = BENCHMARK[dataset].also if dataset in BENCHMARK else ()
    folders = [Path(f"{root}-{name}") for name in (dataset.lower(), *also)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ScoreError(
            f"{folders[0]}: no such folder; expected the answers to {dataset}; make them with inference.py"
        )
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir() and run in (None, path.name))
    if len(runs) != 1:
        raise ScoreError(
            f"{folder}: expected one run, or {run or 'the one that --run names'}; found {', '.join(runs) or 'none'}"
        )
    found = {}
    for path in sorted((folder / runs[0]).iterdir()):
        match = _ANSWERS.fullmatch(path.name)
        if match and "openset" not in path.name and "sentiment" not in path.name and match["kind"] in (None, kind):
            found.setdefault(match["checkpoint"], path)  # JSON lines come first: an .npz beside them says the same
    found = {name: path for name, path in found.items() if not epochs or epoch_of(name) in epochs}
    if not found:
        raise NothingToScoreError(
            f"{folder / runs[0]}: expected answers ({{checkpoint}}-{kind}.jsonl or {{checkpoint}}.npz), found none of "
            "these epochs"
        )
    return found


def score_file(path: Path, truth: Truth, wheels: EmotionWheels, vocabulary: Vocabulary) -> Score:
    """Return the scores of one file of answers."""
    read = read_sentiments if truth.task == Task.SENTIMENT else read_labels
    labelled: Labelled = read(path, vocabulary)
    try:
        scores = score(truth.task, truth.labels, labelled.answers, wheels)
    except ScoreError as error:
        raise ScoreError(f"{path}: {truth.dataset}: {error}") from error
    return replace(scores, labels_from=labelled.source)
