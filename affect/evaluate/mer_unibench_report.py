"""The tables of a benchmark: by the published rule, by the honest one, and one system against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affect.evaluate.mer_unibench import BENCHMARK, Results, Score, best_on_test, epoch_of, one_for_all
from affect.evaluate.report import MEAN, Report, ResultTable
from affect.evaluate.tally import Comparison, compare, interval, replicates

PUBLISHED, HONEST = "published", "honest"


@dataclass(frozen=True)
class Chosen:
    """The scores that a rule reports: test set -> checkpoint and its scores."""

    checkpoints: dict[str, str]
    scores: dict[str, Score]

    @property
    def mean(self) -> float:
        """Plain mean over the test sets."""
        return float(np.mean([score.first for score in self.scores.values()]))


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
        rows = rule_rows(chosen, draws, seed)
        header = ["test set", "metric", "score", "low", "high", "n", "checkpoint"]
        shown = [[*row[:-1], epoch_of(row[-1]) or row[-1]] for row in rows]
        tables.append(ResultTable(titles[rule], [*header[:-1], "epoch"], shown, size_note(chosen)))
        sets = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
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
        rows = [
            [name, c.first, c.second, c.first - c.second, c.low, c.high, f"{c.p:.4f}"] for name, c in compared.items()
        ]
        header = ["test set", "first", "second", "difference", "low", "high", "p"]
        note = "honest rule; p: both answers to a clip swapped at random"
        tables.append(ResultTable("First system against second", header, rows, note))
        content["comparison"] = {
            name: {**dict(zip(header[1:6], row[1:6], strict=True)), "p": c.p}
            for (name, c), row in zip(compared.items(), rows, strict=True)
        }
    return Report(content, tables)


def choices(scores: Results, validation: str | None) -> dict[str, Chosen]:
    """Return what either rule reports of a system."""
    reported = {dataset: by_name for dataset, by_name in scores.items() if dataset != validation}
    firsts = {dataset: {name: score.first for name, score in by_name.items()} for dataset, by_name in scores.items()}
    tested = {dataset: firsts[dataset] for dataset in reported}
    one = one_for_all(tested, firsts[validation] if validation else None)
    picked = {
        PUBLISHED: {dataset: best_on_test(by_name) for dataset, by_name in tested.items()},
        HONEST: dict.fromkeys(tested, one),
    }
    return {
        rule: Chosen(names, {dataset: reported[dataset][name] for dataset, name in names.items()})
        for rule, names in picked.items()
    }


def rule_rows(chosen: Chosen, draws: int, seed: int) -> list[list[Any]]:
    """Return set, metric, score, low, high, clips and checkpoint of each test set, and of their mean."""
    rows: list[list[Any]] = []
    for dataset, score in chosen.scores.items():
        bounds = interval(replicates([score.tally], draws, seed))
        rows.append([dataset, next(iter(score.values)), score.first, *bounds, score.n, chosen.checkpoints[dataset]])
    bounds = interval(replicates([score.tally for score in chosen.scores.values()], draws, seed))
    return [*rows, [MEAN, f"of {len(rows)}", chosen.mean, *bounds, sum(row[5] for row in rows), ""]]


def compare_systems(first: Chosen, second: Chosen, draws: int, seed: int) -> dict[str, Comparison]:
    """Return test set -> comparison of two systems' scores, and that of their means as the last."""
    compared = {
        dataset: compare([score.tally], [second.scores[dataset].tally], draws, seed)
        for dataset, score in first.scores.items()
    }
    sides = [[each.scores[dataset].tally for dataset in first.scores] for each in (first, second)]
    return {**compared, MEAN: compare(*sides, draws, seed)}


def size_note(chosen: Chosen) -> str:
    """Return which labels were used, and which test sets are not as large as the published ones."""
    sources = sorted({score.labels_from for score in chosen.scores.values()})
    odd = [
        f"{dataset} {clips} instead of {BENCHMARK[dataset].clips} clips"
        for dataset, clips in ((dataset, score.clips) for dataset, score in chosen.scores.items())
        if dataset in BENCHMARK and clips != BENCHMARK[dataset].clips
    ]
    missing = [dataset for dataset in BENCHMARK if dataset not in chosen.scores]
    notes = [f"labels: {', '.join(sources)}", *odd]
    return "; ".join([*notes, *([f"not scored: {', '.join(missing)}"] if missing else [])])
