"""Which clips a data set has and what is said of them: a CSV table of one's own, or the files of a known data set."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affect.core.schema import Clip, check_name
from affect.data.config import DatasetConfig
from affect.data.known_datasets import (
    KNOWN_DATASETS,
    Column,
    KnownDataset,
    dataset_folder,
    dataset_name,
    known_dataset,
)
from affect.data.npz_corpus import read_corpus
from affect.data.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

TABLE_KEYS = ("csv_column", "subtitle_column", "label_column", "description_column", "valence_column", "split_column")
"""Keys of a data set's section that say how to read its csv_path."""
_FIELDS = ("name", "subtitle", "labels", "description", "valence", "split")
"""Field of a clip that each of them fills."""
UNSPLIT = ("train", "test")
"""Splits that a table without a split column counts as."""

_BETWEEN = re.compile("['\",]")


def require_once(names: Iterable[str], path: str | Path) -> None:
    """Raise ValueError when a clip is there twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: expected each clip once, found {twice[0]!r} several times; correct the file")


def parse_labels(value: Any) -> tuple[str, ...]:
    """Return the words of a label cell: "['happy', 'excited']", "happy, excited" or a list.

    Splits at commas and quotes only; empty cells and NaN give no words.
    """
    if isinstance(value, list | tuple):
        return tuple(str(word).strip() for word in value)
    text = "" if value is None or value != value else str(value).strip().removeprefix("[").removesuffix("]")
    return tuple(word for piece in _BETWEEN.split(text) if (word := piece.strip()))


@dataclass(frozen=True)
class Manifest:
    """The clips of one split."""

    clips: list[Clip]
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Field that no clip has (labels, description, valence) -> where it was looked for."""


def read_clips(dataset: str, config: DatasetConfig, split: str | None = None) -> list[Clip]:
    """Return the clips of `read_manifest`."""
    return read_manifest(dataset, config, split).clips


def read_manifest(dataset: str, config: DatasetConfig, split: str | None = None) -> Manifest:
    """Return the clips of a split, from the section's csv_path or else a known data set's own files.

    Without a split, all clips of a table. Raises ValueError when there are no such files, or they do not have that
    split, or lack what they should have, or have a clip twice or with a name that is none.
    """
    known = known_dataset(dataset)
    if config.ann_paths and config.csv_path is None:
        _check_label_files(dataset, config, known)
        config = config if known else config.model_copy(update={"csv_path": config.ann_paths[0]})
    if config.csv_path is not None:
        return _read_table_of_clips(dataset, config, split)
    if known is None:
        raise ValueError(
            f"datasets.{dataset}.csv_path: expected the path of a table with one row a clip, found nothing; "
            f"data sets that need none: {', '.join(KNOWN_DATASETS)}"
        )
    for key in TABLE_KEYS:
        if getattr(config, key) != DatasetConfig.model_fields[key].default:
            raise ValueError(
                f"datasets.{dataset}.{key}: says how to read a table of one's own, but csv_path names none; "
                "give csv_path, or leave the key out"
            )
    return _read_known(dataset, known, dataset_folder(known, config), split)


def _check_label_files(dataset: str, config: DatasetConfig, known: KnownDataset | None) -> None:
    """Raise ValueError where ann_paths are not files of a known data set, or one table of another."""
    folders, names = {Path(path).parent for path in config.ann_paths}, {Path(path).name for path in config.ann_paths}
    if known and not (names <= known.files and len(folders) == 1):
        raise ValueError(
            f"datasets.{dataset}.ann_paths: expected published files ({', '.join(sorted(known.files))}) in one folder, "
            f"found {', '.join(config.ann_paths)}; a table of your own goes into csv_path"
        )
    if not known and len(config.ann_paths) > 1:
        raise ValueError(
            f"datasets.{dataset}.ann_paths: expected one table of clips, found {len(config.ann_paths)} files; join them"
        )


def require_table(dataset: str, config: DatasetConfig) -> None:
    """Raise ValueError where csv_path names no file."""
    if config.csv_path is not None and not Path(config.csv_path).is_file():
        raise ValueError(f"datasets.{dataset}.csv_path: no such file: {config.csv_path}; name a table of clips")


def _read_table_of_clips(dataset: str, config: DatasetConfig, split: str | None) -> Manifest:
    require_table(dataset, config)
    path = config.csv_path
    advice = f"name the one with the clips' names in datasets.{dataset}.csv_column"
    table = read_table(path, config.csv_column, advice=advice)
    require_once(table[config.csv_column], path)
    if split is not None:
        table = rows_of_split(table, config.split_column, split, path)
    known = known_dataset(dataset)
    columns = [getattr(config, key) for key in TABLE_KEYS]
    empty = ("neutral",) if known and not known.classes and config.label_column in table else ()
    clips = _clips(
        dataset, path, {column: table[column].tolist() for column in columns if column in table}, columns, empty
    )
    if not clips:
        raise ValueError(f"{path}: expected one row a clip, found none")
    lacking = {
        what: f"{path}: expected a column {column!r}, found {', '.join(table)}; name it in datasets.{dataset}.{key}"
        for what, key, column in zip(_FIELDS[2:5], TABLE_KEYS[2:5], columns[2:5], strict=True)
        if column not in table
    }
    return Manifest(clips, lacking)


def rows_of_split(table: pd.DataFrame, column: str, split: str, path: str | Path) -> pd.DataFrame:
    """Return the rows of a split; a table without that column counts as each of `UNSPLIT` (raises ValueError)."""
    if column not in table:
        if split in UNSPLIT:
            return table
        raise ValueError(
            f"{path}: expected clips of split {split!r}, found no column {column!r}; such a table "
            f" counts as {' and '.join(UNSPLIT)} alike"
        )
    rows = table[table[column] == split]
    if not len(rows):
        counts = table[column].value_counts(sort=False)
        there = ", ".join(f"{name!r} ({count})" for name, count in counts.items()) or "no rows at all"
        raise ValueError(f"{path}: expected clips of split {split!r}, found none; it has {there}")
    return rows


def _read_known(dataset: str, known: KnownDataset, folder: Path, split: str | None) -> Manifest:
    if split not in known.splits:
        raise ValueError(f"data set {dataset} has no split {split!r}: expected one of {', '.join(known.splits)}")
    parts = known.splits[split]
    path = folder / parts.clips.file
    columns = {"labels": parts.labels, "valence": parts.valences, "description": parts.descriptions}
    values = {what: _read_column(dataset, folder, column) for what, column in columns.items() if column}
    listed = next(iter(values.values())) if values else _read_column(dataset, folder, parts.clips)
    names = [name for name in listed if re.fullmatch(parts.only, name)]
    values["subtitle"] = _read_column(dataset, folder, known.subtitles)
    table = {what: [of_clip.get(name, "") for name in names] for what, of_clip in values.items()}
    if parts.labels:
        told = zip(names, table["labels"], strict=True)
        table["labels"] = [known.word(label, f"{path}: clip {name!r}") for name, label in told]
    table |= {"name": names, "split": [split] * len(names)}
    clips = _clips(dataset, path, table, _FIELDS, ("neutral",) if parts.labels and not known.classes else ())
    if not clips:
        raise ValueError(f"{path}: expected clips of split {split!r}, found none")
    has = " and ".join(f"{what} ({column.file})" for what, column in columns.items() if column) or "names only"
    return Manifest(
        clips, {what: f"split {split} of {dataset} has {has}" for what, column in columns.items() if not column}
    )


def _read_column(dataset: str, folder: Path, column: Column) -> dict[str, Any]:
    """Return clip -> value (raises ValueError when the file, the column or the corpus is not there)."""
    path = folder / column.file
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; set datasets.{dataset}.data_root to the folder that holds {folder.name}, or "
            "csv_path to a table of clips"
        )
    if column.corpus:
        return read_corpus(path, column.key, {column.corpus: ".*"})
    columns = list(dict.fromkeys(["name", column.key]))
    table = read_table(path, *columns)[columns]
    table = table.drop_duplicates() if column.key != "name" else table
    require_once(table["name"], path)
    return dict(zip(table["name"], table[column.key], strict=True))


def _clips(
    dataset: str, path: str | Path, table: Mapping[str, list[Any]], columns: Sequence[str], empty: tuple[str, ...]
) -> list[Clip]:
    """Return the clips of a table whose `columns` are those of `_FIELDS`; `empty`: the labels of an empty cell."""
    dataset, what = dataset_name(dataset), f"{path}: clip name"
    cells = [table.get(column, repeat("")) for column in columns]
    return [
        Clip(check_name(name, what), dataset, subtitle, parse_labels(labels) or empty, description, value, split)
        for name, subtitle, labels, description, valence, split in zip(*cells, strict=False)
        for value in [None if valence == "" else parse_valence(valence, path, name)]
    ]


def parse_valence(value: Any, path: str | Path, name: str) -> float:
    """Return the valence in a cell of a table (raises ValueError naming file and clip where it is no number)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: clip {name!r} has the valence {value!r}: expected a number such as -0.4; correct it")
    return number
