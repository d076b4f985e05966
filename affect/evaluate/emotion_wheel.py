"""Emotion words of any kind, scored by what they have in common on five emotion wheels.

Lian et al., "AffectGPT: A New Dataset, Model, and Benchmark for Emotion Understanding with MLLMs", 2025
(arXiv:2501.16566) measure open-vocabulary emotions (EW, here `ew_scores`) and, where a clip has one label of a
fixed list, whether an answer hits it (`hit_scores`). A word becomes a form, a form one or more names, a name
one or more words of the wheels, and these become a cluster: the level-1 word above them, or the level-2 one.

Conventions: a clip whose labels have no cluster on a wheel is left out there, so n differs between wheels; an
answer without a cluster scores 0; a mean of nothing and 0/0 are NaN; one NaN wheel makes the mean over the
wheels NaN. F is made of the mean precision and the mean recall of a wheel, and then averaged over wheels.
"neutral" has no cluster on any wheel; that "fear" means happy, joyful or genius on wheels 2 to 5 is how the
published tables are, and kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from affect.data.tables import read_table
from affect.evaluate.answers import split_labels
from affect.evaluate.errors import LabelError, require_names
from affect.evaluate.tally import Score, Tally

WHEELS = (1, 2, 3, 4, 5)
LEVELS = (1, 2)
_RUNS = range(1, 9)
"""Runs of the synonym table."""

Clusters = frozenset[str]


@dataclass(frozen=True)
class EmotionWheels:
    """The tables that lead from a word to its clusters, read once."""

    names: dict[str, list[str]]
    """Form of a word -> its names, alphabetically ("happiest" -> ["happy"])."""
    wheel_words: dict[str, list[str]]
    """Name -> the words of the wheels that it is a synonym of, alphabetically."""
    trees: dict[tuple[int, int], dict[str, str]]
    """(wheel, level) -> word of that wheel -> cluster."""

    @cached_property
    def clusters(self) -> dict[int, dict[str, tuple[str | None, ...]]]:
        """Level -> form -> its cluster on each of the five wheels; forms unknown to all of them are not there."""
        found: dict[int, dict[str, tuple[str | None, ...]]] = {level: {} for level in LEVELS}
        for form, names in self.names.items():
            words = sorted({word for name in names for word in self.wheel_words.get(name, ())})
            for level in LEVELS:
                trees = [self.trees[wheel, level] for wheel in WHEELS]
                row = tuple(next((tree[word] for word in words if word in tree), None) for tree in trees)
                if any(row):
                    found[level][form] = row
        return found

    def cluster(self, form: str, wheel: int, level: int) -> str | None:
        """Return the cluster of a word, written exactly as a form is, or None where the wheel does not know it."""
        row = self.clusters[level].get(form)
        return row[wheel - 1] if row else None

    def to_clusters(self, words: Iterable[str], level: int, lower: bool = True) -> list[Clusters]:
        """Return the clusters of some words on each of the five wheels."""
        rows = [self.clusters[level].get((word.lower() if lower else word).strip()) for word in words]
        known = [row for row in rows if row]
        return [frozenset(filter(None, column)) for column in zip(*known, strict=True)] or [frozenset()] * len(WHEELS)

    def unknown_words(self, answers: Iterable[Any]) -> Counter[str]:
        """Count the words of some answers that no wheel knows."""
        words = (word.lower().strip() for answer in answers for word in split_labels(answer))
        return Counter(word for word in words if word not in self.clusters[1])


def read_wheels(folder: str | Path) -> EmotionWheels:
    """Return the tables of a folder with format.csv, synonym.xlsx and wheel1.xlsx to wheel5.xlsx.

    Raises ValueError naming the file, or the columns, that it lacks.
    """
    folder = Path(folder)
    names: dict[str, set[str]] = defaultdict(set)
    for name, listed in _read(folder / "format.csv", ["name", "format"]):
        for form in [*filter(None, listed.split(",")), name]:
            names[form].add(name)
    synonyms = _read(folder / "synonym.xlsx", [f"{part}_run{run}" for run in _RUNS for part in ("word", "synonym")])
    wheel_words: dict[str, set[str]] = defaultdict(set)
    for row in synonyms:
        for word, listed in zip(row[::2], row[1::2], strict=True):
            for synonym in filter(None, map(_plain, [*listed.split(","), word])):
                wheel_words[synonym].add(_plain(word))
    trees = {}
    for wheel in WHEELS:
        branches = _branches(_read(folder / f"wheel{wheel}.xlsx", ["level1", "level2", "level3"]))
        trees[wheel, 1] = {word: words[0] for words in branches for word in words}
        trees[wheel, 2] = _level2_tree(branches)
    in_order = ({key: sorted(found) for key, found in table.items()} for table in (names, wheel_words))
    return EmotionWheels(*in_order, trees)


def _read(path: Path, columns: list[str]) -> list[tuple[str, ...]]:
    """Return the rows of a table as strings, empty cells as ''."""
    advice = "name the folder of all emotion wheel tables: format.csv, synonym.xlsx, wheel1.xlsx to wheel5.xlsx"
    table = read_table(path, *columns, advice=advice)
    return list(table[columns].itertuples(index=False, name=None))


def _branches(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return (level 1, level 2, level 3) of each row; a blank cell repeats the one above it."""
    branches, above = [], ("", "", "")
    for row in rows:
        above = tuple(_plain(word) or other for word, other in zip(row, above, strict=True))
        branches.append(above)
    return branches


def _level2_tree(branches: list[tuple[str, ...]]) -> dict[str, str]:
    """Return word -> level-2 cluster; a level-1 word stands for the alphabetically first below it."""
    tree = {}
    for top in dict.fromkeys(first for first, _, _ in branches):
        below = [(second, third) for first, second, third in branches if first == top]
        tree[top] = min(second for second, _ in below)
        for second, third in below:
            tree[second] = second
            tree[third] = second
    return tree


def _plain(word: str) -> str:
    return word.lower().strip()


def ew_scores(
    truth: Mapping[str, Any],
    answers: Mapping[str, Any],
    wheels: EmotionWheels,
    level: int = 1,
    names: Collection[str] | None = None,
) -> Score:
    """Return fscore, precision and recall of open-vocabulary answers.

    truth and answers: name -> labels, as `split_labels` reads them; names: clips to score (default: all of
    truth). Raises MissingNamesError, LabelError.
    """

    def shares(true: Clusters, found: Clusters, _wheel: int) -> tuple[float, float]:
        common = len(true & found)
        return common / len(found) if found else 0, common / len(true)

    parts = ("fscore", "precision", "recall")
    return _wheel_scores(truth, answers, wheels, shares, _ew_of_sums, parts, level, names)


def hit_scores(truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels) -> Score:
    """Return hitrate and mscore of answers to clips that have one label of a fixed list each.

    hitrate: shared level-1 clusters (one at most where a clip has one label); it does not punish long answers.
    mscore: the same over the answer's clusters that any label of the data set has. The list of those labels is
    not lower-cased, as published. Raises MissingNamesError, LabelError.
    """
    labels = ([value] if isinstance(value, str) else split_labels(value) for value in truth.values())
    candidates = wheels.to_clusters(chain.from_iterable(labels), 1, lower=False)

    def hits(true: Clusters, found: Clusters, wheel: int) -> tuple[float, float]:
        common, possible = len(true & found), len(found & candidates[wheel])
        return common, common / possible if possible else 0

    return _wheel_scores(truth, answers, wheels, hits, _means_of_sums, ("hitrate", "mscore"))


def overlaps(truth: Any, answer: Any, wheels: EmotionWheels) -> bool:
    """Whether labels and answer share a level-1 cluster on any wheel; no labels mean "neutral", and so match it."""
    told, said = (split_labels(value) or ["neutral"] for value in (truth, answer))
    if "neutral" in told and "neutral" in said:
        return True
    clusters = zip(wheels.to_clusters(told, 1), wheels.to_clusters(said, 1), strict=True)
    return any(true & found for true, found in clusters)


def _wheel_scores(
    truth: Mapping[str, Any],
    answers: Mapping[str, Any],
    wheels: EmotionWheels,
    parts_of: Callable[[Clusters, Clusters, int], tuple[float, float]],
    of_sums: Callable[[np.ndarray], list[np.ndarray]],
    what: tuple[str, ...],
    level: int = 1,
    names: Collection[str] | None = None,
) -> Score:
    """Return the scores `what` that `of_sums` makes of what each clip adds on each wheel.

    parts_of: clusters of labels and of the answer, and the wheel's index -> two numbers to be summed.
    """
    if level not in LEVELS:
        raise LabelError(f"level {level!r} of the emotion wheels: expected 1 or 2")
    chosen = list(truth) if names is None else list(names)
    require_names(chosen, "answer" if names is None else "label or answer", truth, answers)
    counts = np.zeros((len(chosen), len(WHEELS), 3))  # the last marks clips whose label the wheel knows
    told, said = ([_clusters_of(name, table, wheels, level) for name in chosen] for table in (truth, answers))
    for i, j in np.ndindex(counts.shape[:2]):
        if told[i][j]:
            counts[i, j] = *parts_of(told[i][j], said[i][j], j), 1

    def first(sums: np.ndarray) -> np.ndarray:
        return of_sums(sums.reshape(*sums.shape[:-1], len(WHEELS), 3))[0].mean(axis=-1)

    by_wheel = dict(zip(what, of_sums(counts.sum(axis=0)), strict=True))
    kept = counts[..., -1].sum(axis=0).astype(int).tolist()
    per_wheel = [
        {"wheel": wheel, **{key: float(values[j]) for key, values in by_wheel.items()}, "n": kept[j]}
        for j, wheel in enumerate(WHEELS)
    ]
    means = {key: float(values.mean()) for key, values in by_wheel.items()}
    tally = Tally(chosen, counts.reshape(len(chosen), 3 * len(WHEELS)), first)
    return Score(means, len(chosen), len(chosen), tally, per_wheel)


def _clusters_of(name: str, table: Mapping[str, Any], wheels: EmotionWheels, level: int) -> list[Clusters]:
    try:
        return wheels.to_clusters(split_labels(table[name]), level)
    except LabelError as error:
        raise LabelError(f"clip {name!r}: {error}") from None


def _means_of_sums(sums: np.ndarray) -> list[np.ndarray]:
    """Return the means over kept clips [..., wheels] of each part of sums [..., wheels, parts]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return list(np.moveaxis(sums[..., :-1] / sums[..., -1:], -1, 0))


def _ew_of_sums(sums: np.ndarray) -> list[np.ndarray]:
    """Return F, precision and recall [..., wheels] of sums [..., wheels, (precision, recall, kept)]."""
    precision, recall = _means_of_sums(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [2 * precision * recall / (precision + recall), precision, recall]
