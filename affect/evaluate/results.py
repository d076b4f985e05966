"""Reading what is scored: JSON objects, our JSON lines, and the published scorer's .npz files and label files.

The .npz files hold pickled dicts, which `affect.data.npz_corpus` reads without trusting them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affect.core.files import atomic_write
from affect.core.reading import json_lines, read_object, reading
from affect.data.known_datasets import KNOWN_DATASETS
from affect.data.manifest import require_once, rows_of_split
from affect.data.npz_corpus import read_npz
from affect.data.tables import read_table
from affect.evaluate.answers import split_labels
from affect.evaluate.errors import NothingToScoreError
from affect.evaluate.vocabulary import Vocabulary

TABLES = (".csv", ".tsv", ".xlsx")
_ANSWERS = re.compile(r"(?P<checkpoint>.+?)(?:-(?P<kind>description|ovlabel)\.(?:jsonl|npz)|\.npz)")


def read_records(path: str | Path, *keys: str) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file (raises ValueError where a line is none or lacks a key, or all lack)."""
    if records := [record for _, record in json_lines(path, *keys)]:
        return records
    raise ValueError(f"{path}: expected lines of JSON, found none; name another file, or make it anew")


def read_answers(path: str | Path, column: str = "", split: str = "") -> dict[str, Any]:
    """Return name -> answer: JSON lines with name and answer, a table of those, a JSON object, or the published .npz.

    column: of a table or of JSON lines, where it is not answer (of a table openset, too); split: the rows of a table to
    take. A JSON object may hold the answers under `labels`, as `write_labels` puts them; an .npz holds a dict
    name2reason, or filenames and fileitems. Raises ValueError for anything else.
    """
    path = Path(path)
    if path.suffix in TABLES:
        return read_cells(path, column, "answer", "openset", split=split)
    if path.suffix == ".jsonl":
        records = read_records(path, "name", key := column or "answer")
        require_once((record["name"] for record in records), path)
        return {record["name"]: record[key] for record in records}
    if path.suffix != ".npz":
        content = read_object(path, advice="give one of names and values")
        return content["labels"] if isinstance(content.get("labels"), dict) else content
    expected = "name2reason, or filenames and fileitems"
    with reading(path, expected, "name a file of answers"):
        content = read_npz(path)
        if isinstance(content.get("name2reason"), dict):
            return content["name2reason"]
        if {"filenames", "fileitems"} <= content.keys():
            return dict(zip(content["filenames"], content["fileitems"], strict=True))
        found = ", ".join(content) or "nothing"
        raise ValueError(f"{path}: expected {expected}, found {found}; name a file of answers")


def read_cells(path: Path, column: str, *usual: str, split: str = "") -> dict[str, str]:
    """Return clip -> its cell of a table: of the column that is named, or else of the first of some that is there.

    split: take only its rows.
    """
    table = read_table(path, "name")
    chosen = column or next((name for name in usual if name in table), usual[0])
    table = read_table(path, "name", chosen, advice="name another with --gt-column or --pred-column")
    table = rows_of_split(table, "split", split, path) if split else table
    require_once(table["name"], path)
    return dict(zip(table["name"], table[chosen], strict=True))


def are_texts(answers: Iterable[Any]) -> bool:
    """Whether most of some answers are sentences and no labels: between commas they have more than three words."""
    said = [answer for answer in answers if isinstance(answer, str) and answer]
    long = [answer for answer in said if any(len(piece.split()) > 3 for piece in re.split(r"[,;'\"\[\]]", answer))]
    return 2 * len(long) > len(said)


@dataclass(frozen=True)
class Labelled:
    """Answers in the form that is scored, and how they came to be so."""

    answers: dict[str, Any]
    """Name -> labels, or name -> sentiment word."""
    source: str


def labels_path(path: Path, sentiment: bool = False) -> Path:
    """Return where the labels, or the sentiments, that a model found in a file of answers are kept beside it."""
    return path.with_name(f"{path.stem}-openset{'-sentiment' if sentiment else ''}.json")


def write_labels(path: Path, labels: Mapping[str, str], source: str) -> None:
    """Write what a model found in answers, and which model it was."""
    content = {"labels_from": source, "labels": dict(labels)}
    with atomic_write(path) as handle:
        handle.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_labels(path: str | Path, vocabulary: Vocabulary, column: str = "") -> Labelled:
    """Return the labels of a file of answers: those that a model found, if kept beside it, else words of the wheels.

    Files that hold labels are taken as they are: tables and JSON objects, unless most answers in them are sentences,
    and what a model found.
    """
    if given := _given(Path(path), column):
        return given
    answers = read_answers(path, column)
    labels = {name: vocabulary.find(said) if isinstance(said, str) else said for name, said in answers.items()}
    return Labelled(labels, "wheel vocabulary")


def read_sentiments(path: str | Path, vocabulary: Vocabulary | None, column: str = "") -> Labelled:
    """Return the sentiment words of a file of answers: its own or a model's, if kept beside it, or those of its labels.

    vocabulary: where texts and labels become sentiments by the wheels (raises ValueError where it is needed).
    """
    if given := _given(Path(path), column, sentiment=True):
        return given
    if vocabulary is None:
        raise ValueError(f"{path}: texts become sentiments by the emotion wheels: expected --wheels with a folder")
    labelled = read_labels(path, vocabulary, column)
    sentiments = {name: vocabulary.sentiment(split_labels(labels)) for name, labels in labelled.answers.items()}
    return Labelled(sentiments, f"{labelled.source}, sentiment by the first wheel")


def _given(path: Path, column: str, sentiment: bool = False) -> Labelled | None:
    """Return what was found in texts already: the file's own content where it holds none, or what is kept beside it."""
    ours = labels_path(path, sentiment)
    own = ("-sentiment" if sentiment else "-openset") in path.name
    if path.suffix in (".json", *TABLES):
        own = own or not are_texts(read_answers(path, column).values())
    kept = path if own else next((file for file in (ours, ours.with_suffix(".npz")) if file.is_file()), None)
    if kept is None:
        return None
    said = read_object(kept).get("labels_from") if kept.suffix == ".json" else None
    otherwise = "as given" if own else f"as given in {kept.name}"
    return Labelled(read_answers(kept, column if own else ""), said if isinstance(said, str) else otherwise)


def epoch_of(checkpoint: str) -> int:
    """Return the epoch in a checkpoint's name, 0 where it names none."""
    match = re.search(r"checkpoint_(\d+)", checkpoint)
    return int(match[1]) if match else 0


def find_answers(
    root: str | Path, dataset: str, run: str | None = None, kind: str = "description", epochs: Sequence[int] = ()
) -> dict[str, Path]:
    """Return checkpoint -> file of the answers to a test set: {root}-{dataset}/{run}/{checkpoint}.

    The files are this project's JSON lines of one kind of question or the published .npz; those of labels and
    sentiments are not answers. run: needed where there are several; epochs: those to keep (default: all).
    Raises ValueError when there are none.
    """
    also = [
        other for name, known in KNOWN_DATASETS.items() if known.benchmark == dataset for other in (name, *known.also)
    ]
    folders = [Path(f"{root}-{name}") for name in (dataset.lower(), *also)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ValueError(
            f"{folders[0]}: no such folder; expected the answers to {dataset}; make them with inference.py"
        )
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir() and run in (None, path.name))
    if len(runs) != 1:
        raise ValueError(
            f"{folder}: expected one run, or {run or 'the one that --run names'}; found {', '.join(runs) or 'none'}"
        )
    found: dict[str, Path] = {}
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
