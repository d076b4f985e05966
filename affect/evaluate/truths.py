"""What is true of the clips of a test set: labels or valences, from files of many forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affect.core.reading import read_object
from affect.data.known_datasets import KNOWN_DATASETS, KnownDataset, Task
from affect.data.manifest import parse_valence
from affect.data.npz_corpus import read_corpus
from affect.evaluate.answers import split_labels
from affect.evaluate.errors import LabelError, clips_have
from affect.evaluate.results import TABLES, are_texts, read_cells, read_records

BENCHMARK: dict[str, KnownDataset] = {known.benchmark: known for known in KNOWN_DATASETS.values() if known.benchmark}
"""Test sets of MER-UniBench by name, in the order of the published tables."""
_CORPORA = dict.fromkeys(("test1_corpus", "test_corpus"), ".*") | {
    "whole_corpus": KNOWN_DATASETS["iemocap"].splits["test"].only
}
"""Corpus -> pattern of the clips that are tested; only IEMOCAP keeps all of its clips in one corpus."""
_ALSO = {
    other: known.benchmark
    for name, known in KNOWN_DATASETS.items()
    for other in (name, known.benchmark.lower(), *known.also)
    if known.benchmark
}


@dataclass(frozen=True)
class Truth:
    """The labels of one test set."""

    dataset: str
    task: Task
    labels: dict[str, Any]


def read_truths(path: str | Path) -> list[Truth]:
    """Return the labels of every test set that a JSON object names, each under its name in `BENCHMARK`.

    The object has test set -> name -> label, or -> path (relative to the file) of a label file as `read_truth` reads
    it. A set that is not of the benchmark, such as one for validation, says what it is:
    {"task": "hitrate" | "sentiment" | "ew", "labels": names and labels, or a path}. Raises ValueError.
    """
    path, truths = Path(path), []
    for given, entry in read_object(path).items():
        dataset = _ALSO.get(given.lower(), given)
        known = BENCHMARK.get(dataset)
        task = known.task if known else None
        if isinstance(entry, dict) and set(entry) == {"task", "labels"}:
            task, entry = entry["task"], entry["labels"]
        if task not in set(Task) or not isinstance(entry, dict | str):
            raise ValueError(
                f"{path}: {dataset}: expected names and labels, or a path, for one of {', '.join(BENCHMARK)}; or "
                f'{{"task": one of {", ".join(Task)}, "labels": …}} for another set'
            )
        labels = _read_labels(path.parent / entry, Task(task)) if isinstance(entry, str) else entry
        if known:
            labels = {name: known.word(label, f"{path}: {dataset}: clip {name!r}") for name, label in labels.items()}
        truths.append(Truth(dataset, Task(task), _with_labels(labels, f"{path}: {dataset}")))
    return truths


def read_truth(path: str | Path, task: Task, column: str = "", split: str = "") -> dict[str, Any]:
    """Return name -> label of the test clips of a label file; column: of a table or of JSON lines, if not the usual.

    path: a JSON object, JSON lines with `labels`, a table with name and openset (OV-MERD+; of it `split`, if given), or
    the .npz label file of another test set. Raises ValueError when it is none of them, LabelError when a clip has NaN
    for a label.
    """
    labels = _with_labels(_read_labels(Path(path), task, column, split), str(path))
    if are_texts(labels.values()):
        some = next(text for text in labels.values() if are_texts([text]))
        raise LabelError(f"{path}: expected labels, found sentences ({some[:60]!r}); name the labels with --gt-column")
    return labels


def _with_labels(labels: dict[str, Any], where: str) -> dict[str, Any]:
    """Return name -> label (raises LabelError when some are NaN or null)."""
    if bad := [name for name, label in labels.items() if label is None or label != label]:
        raise LabelError(
            f"{where}: {clips_have(bad)} NaN for a label: expected a label for every clip; correct it or leave "
            "the clip out"
        )
    return labels


def _read_labels(path: Path, task: Task, column: str = "", split: str = "") -> dict[str, Any]:
    if path.suffix == ".jsonl":
        return {record["name"]: record[column or "labels"] for record in read_records(path, "name", column or "labels")}
    if path.suffix in TABLES and task == Task.SENTIMENT:
        cells = read_cells(path, column, "valence", split=split)
        return {name: parse_valence(cell, path, name) for name, cell in cells.items()}
    if path.suffix in TABLES:
        cells = read_cells(path, column, "openset", split=split)
        return {name: ", ".join(split_labels(cell) or ["neutral"]) for name, cell in cells.items()}
    if path.suffix != ".npz":
        return read_object(path, advice="give one of names and values")
    return read_corpus(path, "val" if task == Task.SENTIMENT else "emo", _CORPORA)
