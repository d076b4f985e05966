"""MER-UniBench: nine test sets, three kinds of score, and which checkpoint's score is reported.

Lian et al., 2025 (arXiv:2501.16566). The published rule takes for each test set the checkpoint that is best on that
very test set, which flatters every system; the honest one takes one checkpoint for all, the last, or the best
on a validation set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from affect.data.known_datasets import Task
from affect.evaluate.emotion_wheel import EmotionWheels, ew_scores, hit_scores
from affect.evaluate.errors import NothingToScoreError
from affect.evaluate.result_tables import MEAN, Report, ResultTable
from affect.evaluate.results import epoch_of, read_labels, read_sentiments
from affect.evaluate.sentiment import sentiment_scores
from affect.evaluate.tally import Comparison, Tally, compare, interval, replicates
from affect.evaluate.truths import BENCHMARK, Truth
from affect.evaluate.vocabulary import Vocabulary

PUBLISHED, HONEST = "published", "honest"


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
    def metric(self) -> str:
        """Name of the score that counts: hitrate, waf or fscore."""
        return next(iter(self.values))

    @property
    def first(self) -> float:
        """The score that counts."""
        return self.values[self.metric]


Results = dict[str, dict[str, Score]]
"""Test set -> checkpoint -> scores."""


def score(task: Task, truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels) -> Score:
    """Return a task's scores of name -> labels (or sentiment word) against name -> label (or valence)."""
    if task == Task.SENTIMENT:
        scores = sentiment_scores(truth, answers)
        return Score({"waf": scores.waf, "acc": scores.acc}, scores.n, len(truth), scores.tally)
    scores = hit_scores(truth, answers, wheels) if task == Task.HIT_RATE else ew_scores(truth, answers, wheels)
    return Score(scores.means, len(truth), len(truth), scores.tally)


def score_file(path: Path, truth: Truth, wheels: EmotionWheels, vocabulary: Vocabulary) -> Score:
    """Return the scores of one file of answers."""
    read = read_sentiments if truth.task == Task.SENTIMENT else read_labels
    labelled = read(path, vocabulary)
    try:
        scores = score(truth.task, truth.labels, labelled.answers, wheels)
    except ValueError as error:
        raise ValueError(f"{path}: {truth.dataset}: {error}") from error
    return replace(scores, labels_from=labelled.source)


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


@dataclass(frozen=True)
class Chosen:
    """The scores that a rule reports: test set -> checkpoint and its scores."""

    checkpoints: dict[str, str]
    scores: dict[str, Score]

    def rows(self, draws: int, seed: int) -> list[dict[str, Any]]:
        """Return a row for each test set, and one for their mean."""
        rows = []
        for dataset, score in self.scores.items():
            bounds = _bounds([score], draws, seed)
            scored = {"test set": dataset, "metric": score.metric, "score": score.first, **bounds, "n": score.n}
            rows.append(scored | {"checkpoint": self.checkpoints[dataset]})
        means = {"score": float(np.mean([row["score"] for row in rows])), **_bounds(self.scores.values(), draws, seed)}
        about = {"test set": MEAN, "metric": f"of {len(rows)}", **means, "n": sum(row["n"] for row in rows)}
        return [*rows, about | {"checkpoint": ""}]

    def size_note(self) -> str:
        """Return which labels were used, and which test sets are not as large as the published ones."""
        sources = sorted({score.labels_from for score in self.scores.values()})
        odd = [
            f"{dataset} {score.clips} instead of {BENCHMARK[dataset].test_clips} clips"
            for dataset, score in self.scores.items()
            if dataset in BENCHMARK and score.clips != BENCHMARK[dataset].test_clips
        ]
        missing = [dataset for dataset in BENCHMARK if dataset not in self.scores]
        unscored = [f"not scored: {', '.join(missing)}"] if missing else []
        return "; ".join([f"labels: {', '.join(sources)}", *odd, *unscored])


def benchmark_report(systems: Sequence[Results], validation: str | None, draws: int, seed: int) -> Report:
    """Return the tables of the first system and, where there is a second, of the comparison under the honest rule.

    validation: test set that only chooses the checkpoint of the honest rule. draws: bootstrap and permutation draws.
    Intervals take the choice of the checkpoint as given.
    """
    by_rule = [choices(scores, validation) for scores in systems]
    chosen_on = f"best on {validation}" if validation else "the last one"
    titles = {
        PUBLISHED: "Published rule: for each test set the checkpoint that is best on it",
        HONEST: f"Honest rule: one checkpoint for all, {chosen_on}",
    }
    content: dict[str, Any] = {}
    tables = []
    for rule, chosen in by_rule[0].items():
        rows = chosen.rows(draws, seed)
        shown = [{**row, "epoch": epoch_of(row["checkpoint"]) or row["checkpoint"]} for row in rows]
        tables.append(ResultTable(titles[rule], [_without(row, "checkpoint") for row in shown], chosen.size_note()))
        sets = {row["test set"]: _without(row, "test set") for row in rows}
        content[rule] = {MEAN: sets.pop(MEAN), "test_sets": sets}
    content[HONEST]["checkpoint"] = next(iter(by_rule[0][HONEST].checkpoints.values()))
    content[HONEST]["chosen"] = chosen_on
    content["checkpoints"] = {
        dataset: {
            name: {**score.values, "n": score.n, "labels_from": score.labels_from} for name, score in scores.items()
        }
        for dataset, scores in systems[0].items()
    }
    if len(systems) > 1:
        compared = compare_systems(by_rule[0][HONEST], by_rule[1][HONEST], draws, seed)
        content["comparison"] = {
            name: {"first": c.first, "second": c.second, "difference": c.first - c.second}
            | {"low": c.low, "high": c.high, "p": c.p}
            for name, c in compared.items()
        }
        rows = [{"test set": name, **row, "p": f"{row['p']:.4f}"} for name, row in content["comparison"].items()]
        note = "honest rule; p: both answers to a clip swapped at random"
        tables.append(ResultTable("First system against second", rows, note))
    return Report(content, tables)


def choices(scores: Results, validation: str | None) -> dict[str, Chosen]:
    """Return what either rule reports of a system."""
    firsts = {dataset: {name: score.first for name, score in by_name.items()} for dataset, by_name in scores.items()}
    tested = {dataset: by_name for dataset, by_name in firsts.items() if dataset != validation}
    one = one_for_all(tested, firsts[validation] if validation else None)
    picked = {
        PUBLISHED: {dataset: best_on_test(by_name) for dataset, by_name in tested.items()},
        HONEST: dict.fromkeys(tested, one),
    }
    return {
        rule: Chosen(names, {dataset: scores[dataset][name] for dataset, name in names.items()})
        for rule, names in picked.items()
    }


def compare_systems(first: Chosen, second: Chosen, draws: int, seed: int) -> dict[str, Comparison]:
    """Return test set -> comparison of two systems' scores, and that of their means as the last."""
    sides = [[each.scores[dataset].tally for dataset in first.scores] for each in (first, second)]
    pairs = zip(first.scores, *sides, strict=True)
    return {
        **{dataset: compare([ours], [other], draws, seed) for dataset, ours, other in pairs},
        MEAN: compare(*sides, draws, seed),
    }


def _bounds(scores: Iterable[Score], draws: int, seed: int) -> dict[str, float]:
    """Return the interval of the mean of some scores."""
    return dict(zip(("low", "high"), interval(replicates([each.tally for each in scores], draws, seed)), strict=True))


def _without(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != column}
