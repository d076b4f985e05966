"""MER-UniBench: nine test sets, three kinds of score, and which checkpoint's score is reported.

Lian et al., 2025 (arXiv:2501.16566). The published rule takes for each test set the checkpoint that is best on that
very test set, which flatters every system; the honest one takes one checkpoint for all, the last, or the best
on a validation set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from affect.data.known_datasets import Task
from affect.evaluate.emotion_wheel import EmotionWheels, ew_scores, hit_scores
from affect.evaluate.errors import NothingToScoreError
from affect.evaluate.result_tables import MEAN, Report, ResultTable
from affect.evaluate.results import epoch_of, read_labels, read_sentiments
from affect.evaluate.sentiment import sentiment_scores
from affect.evaluate.tally import Score, compare, interval, replicates
from affect.evaluate.truths import BENCHMARK, Truth
from affect.evaluate.vocabulary import Vocabulary

PUBLISHED, HONEST = "published", "honest"


Results = dict[str, dict[str, Score]]
"""Test set -> checkpoint -> scores."""


def score(task: Task, truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels) -> Score:
    """Return a task's scores of name -> labels (or sentiment word) against name -> label (or valence)."""
    if task == Task.SENTIMENT:
        return sentiment_scores(truth, answers)
    return (hit_scores if task == Task.HIT_RATE else ew_scores)(truth, answers, wheels)


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
        picked = {name: systems[0][name][checkpoint] for name, checkpoint in chosen.items()}
        sets = {
            name: {"metric": score.metric, "score": score.first, **_bounds([score], draws, seed), "n": score.n}
            for name, score in picked.items()
        }
        means = {"score": float(np.mean([row["score"] for row in sets.values()]))}
        means |= {**_bounds(picked.values(), draws, seed), "n": sum(row["n"] for row in sets.values())}
        sets[MEAN] = {"metric": f"of {len(sets)}", **means}
        rows = [
            {"test set": name, **row, "epoch": epoch_of(chosen.get(name, "")) or chosen.get(name, "")}
            for name, row in sets.items()
        ]
        tables.append(ResultTable(titles[rule], rows, _size_note(picked)))
        sets = {name: {**row, "checkpoint": chosen.get(name, "")} for name, row in sets.items()}
        content[rule] = {MEAN: sets.pop(MEAN), "test_sets": sets}
    content[HONEST] |= {"checkpoint": next(iter(by_rule[0][HONEST].values())), "chosen": chosen_on}
    content["checkpoints"] = {
        dataset: {
            name: {**score.values, "n": score.n, "labels_from": score.labels_from} for name, score in scores.items()
        }
        for dataset, scores in systems[0].items()
    }
    if len(systems) > 1:
        content["comparison"] = compared = _compared(systems, [rules[HONEST] for rules in by_rule], draws, seed)
        rows = [{"test set": name, **row, "p": f"{row['p']:.4f}"} for name, row in compared.items()]
        note = "honest rule; p: both answers to a clip swapped at random"
        tables.append(ResultTable("First system against second", rows, note))
    return Report(content, tables)


def choices(scores: Results, validation: str | None) -> dict[str, dict[str, str]]:
    """Return rule -> test set -> the checkpoint that it reports of a system."""
    firsts = {dataset: {name: score.first for name, score in by_name.items()} for dataset, by_name in scores.items()}
    tested = {dataset: by_name for dataset, by_name in firsts.items() if dataset != validation}
    return {
        PUBLISHED: {dataset: best_on_test(by_name) for dataset, by_name in tested.items()},
        HONEST: dict.fromkeys(tested, one_for_all(tested, firsts[validation] if validation else None)),
    }


def _compared(
    systems: Sequence[Results], chosen: Sequence[Mapping[str, str]], draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return test set -> comparison of two systems' chosen scores, and that of their means as the last."""
    sides = [
        [scores[dataset][names[dataset]].tally for dataset in chosen[0]]
        for scores, names in zip(systems, chosen, strict=True)
    ]
    pairs = {name: ([one], [other]) for name, one, other in zip(chosen[0], *sides, strict=True)} | {MEAN: sides}
    return {name: asdict(compare(*pair, draws, seed)) for name, pair in pairs.items()}


def _bounds(scores: Iterable[Score], draws: int, seed: int) -> dict[str, float]:
    """Return the interval of the mean of some scores."""
    return dict(zip(("low", "high"), interval(replicates([each.tally for each in scores], draws, seed)), strict=True))


def _size_note(scores: Mapping[str, Score]) -> str:
    """Return which labels were used, and which test sets are not as large as the published ones, or not there."""
    sources = ", ".join(sorted({score.labels_from for score in scores.values()}))
    odd = [
        f"{dataset} {scores[dataset].clips} instead of {known.test_clips} clips"
        for dataset, known in BENCHMARK.items()
        if dataset in scores and scores[dataset].clips != known.test_clips
    ]
    missing = ", ".join(dataset for dataset in BENCHMARK if dataset not in scores)
    return "; ".join([f"labels: {sources}", *odd, *([f"not scored: {missing}"] if missing else [])])
