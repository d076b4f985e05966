"""Tables of clips: one CSV row a clip, with its subtitle, labels and description."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from affect.config import DatasetConfig
from affect.schema import Clip, check_name

_ENCODINGS = ("utf-8-sig", "cp1252")
"""Tried in turn: some public tables hold Windows quotes."""


def read_table(path: str | Path) -> pd.DataFrame:
    """Return a CSV (or, for `.tsv`, tab-separated) table as strings; empty cells are ''.

    Raises ValueError when the file is missing, empty or no table.
    """
    path = Path(path)
    separator = "\t" if path.suffix == ".tsv" else ","
    for encoding in _ENCODINGS:
        try:
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding=encoding)
        except UnicodeDecodeError:
            continue
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; expected a table with one row a clip") from None
        except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
            raise ValueError(f"{path}: expected a table with a header and one row a clip ({error})") from None
        return table.rename(columns=str.strip)
    raise ValueError(f"{path}: expected UTF-8 text")


def parse_labels(value: Any) -> tuple[str, ...]:
    """Return the words of a label cell: "['happy', 'excited']", "happy, excited" or a list.

    Splits at commas and quotes only; empty cells and NaN give no words.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ()
    if isinstance(value, list | tuple):
        return tuple(str(word).strip() for word in value)
    text = str(value).strip().removeprefix("[").removesuffix("]")
    for quote in "'\"":
        text = text.replace(quote, ",")
    return tuple(word.strip() for word in text.split(",") if word.strip())


def read_clips(dataset: str, config: DatasetConfig, split: str | None = None) -> list[Clip]:
    """Return the clips of a data set's table, those of one split if given and the table knows splits.

    Raises ValueError when there is no table, a named column or clip name is missing or twice there,
    or no clip is left.
    """
    if config.csv_path is None:
        raise ValueError(
            f"datasets.{dataset}.csv_path: expected the path of a table with one row a clip, found nothing"
        )
    table = read_table(config.csv_path)
    if config.csv_column not in table:
        raise ValueError(
            f"{config.csv_path}: expected a column {config.csv_column!r} with clip names, found {', '.join(table)}; "
            f"name the right one in datasets.{dataset}.csv_column"
        )
    names = table[config.csv_column]
    doubled = names[names.duplicated()].unique()
    if len(doubled):
        raise ValueError(f"{config.csv_path}: expected each clip once, found {doubled[0]!r} several times")
    if split is not None and config.split_column in table:
        table = table[table[config.split_column] == split]
    clips = [_clip(row, dataset, config) for row in table.to_dict("records")]
    if not clips:
        raise ValueError(f"{config.csv_path}: expected clips of split {split!r}, found none")
    return clips


def _clip(row: dict[str, str], dataset: str, config: DatasetConfig) -> Clip:
    return Clip(
        name=check_name(row[config.csv_column], f"{config.csv_path}: clip name"),
        dataset=dataset,
        subtitle=row.get(config.subtitle_column, ""),
        labels=parse_labels(row.get(config.label_column)),
        description=row.get(config.description_column, ""),
        split=row.get(config.split_column, ""),
    )
