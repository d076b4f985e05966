"""`tools/evaluate.py ew | hitrate | sentiment | labels | unibench | grounding`: answers scored, reported, drawn."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from affect.core.au_json import find_au_json, read_au_json
from affect.core.facs import parse_au_description
from affect.core.plots import draw_bars, draw_confusion
from affect.data.known_datasets import NEGATIVE, NEUTRAL, POSITIVE, Task
from affect.data.manifest import require_once
from affect.evaluate.answers import split_labels
from affect.evaluate.classification import classification_scores, confusion
from affect.evaluate.emotion_wheel import EmotionWheels, ew_scores, hit_scores, overlaps, read_wheels
from affect.evaluate.grounding import Grounding, ground, ground_answers
from affect.evaluate.mer_unibench import Results, benchmark_report, score_file
from affect.evaluate.result_tables import MEAN, Report, ResultTable
from affect.evaluate.results import (
    Labelled,
    are_texts,
    find_answers,
    labels_path,
    read_answers,
    read_labels,
    read_records,
    read_sentiments,
    write_labels,
)
from affect.evaluate.sentiment import sentiment_scores
from affect.evaluate.truths import read_truth, read_truths
from affect.evaluate.vocabulary import Vocabulary
from affect.evaluate.wheel_pictures import draw_label_pictures
from extractors.au.templates import describe_frame

SHARES = ("precision", "recall", "faultless_share", "absent_share")
"""Shares of a `Grounding` that are reported."""


def wheel_report(args: argparse.Namespace) -> Report:
    """Score labels on the emotion wheels: EW or hit rate."""
    wheels = read_wheels(args.wheels)
    truth = read_truth(args.gt, args.task, args.gt_column, args.split)
    labelled = read_labels(args.pred, Vocabulary(wheels), args.pred_column)
    answers = labelled.answers
    if args.task == Task.HIT_RATE:
        scored = {"hit rate": hit_scores(truth, answers, wheels)}
    else:
        levels = (1, 2) if args.level == "both" else (int(args.level),)
        scored = {f"EW, level {level}": ew_scores(truth, answers, wheels, level) for level in levels}
    notes = _notes_on(truth, labelled)
    notes["unknown_words"] = wheels.unknown_words(answers[name] for name in truth).total()
    notes["unknown_labels"] = wheels.unknown_words(truth.values()).total()
    parts = [{**scores.values, "per_wheel": scores.per_wheel} for scores in scored.values()]
    content = parts[0]
    if len(parts) > 1:
        means = {key: (parts[0][key] + parts[1][key]) / 2 for key in ("fscore", "precision", "recall")}
        content = {**means, "level1": parts[0], "level2": parts[1]}
    if args.pictures:
        draw_label_pictures(args.pictures, truth, answers, wheels)
    if args.pictures and args.task == Task.HIT_RATE:
        rates = _hit_rates_by_label(truth, answers, wheels)
        draw_bars(args.pictures / "labels.png", list(rates), {"hit rate": list(rates.values())}, "mean over the wheels")
    tables = [
        ResultTable(title, [*scores.per_wheel, {"wheel": MEAN, **scores.values, "n": ""}], _in_words(notes))
        for title, scores in scored.items()
    ]
    return Report({**content, "n": len(truth), **notes}, tables)


def _hit_rates_by_label(
    truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels
) -> dict[str, float]:
    """Return label -> hit rate of its clips, over the wheels that know the label; NaN where none does."""
    by_label: dict[str, dict[str, Any]] = {}
    for name, value in truth.items():
        by_label.setdefault(", ".join(split_labels(value)), {})[name] = value
    rates = {}
    for label, clips in sorted(by_label.items()):
        known = [each["hitrate"] for each in hit_scores(clips, answers, wheels).per_wheel if each["n"]]
        rates[label] = float(np.mean(known)) if known else math.nan
    return rates


def sentiment_report(args: argparse.Namespace) -> Report:
    """Score positive, negative and neutral against valences."""
    truth = read_truth(args.gt, args.task, args.gt_column, args.split)
    vocabulary = Vocabulary(read_wheels(args.wheels)) if args.wheels else None
    labelled = read_sentiments(args.pred, vocabulary, args.pred_column)
    scores = sentiment_scores(truth, labelled.answers)
    notes = _notes_on(truth, labelled)
    notes["unknown_words"] = sum(labelled.answers[name] not in (POSITIVE, NEGATIVE, NEUTRAL) for name in truth)
    if args.pictures:
        names, classes = scores.tally.names, [POSITIVE, NEGATIVE]
        told = [POSITIVE if truth[name] > 0 else NEGATIVE for name in names]
        counts = confusion(told, [labelled.answers[name] for name in names], classes)
        each = classification_scores(counts).per_class
        draw_confusion(args.pictures / "confusion.png", counts, classes)
        draw_bars(args.pictures / "labels.png", classes, {"recall": each["recall"], "precision": each["precision"]})
    content = {**scores.values, "n": scores.n}
    return Report({**content, **notes}, [ResultTable("sentiment", [{"clips": "all", **content}], _in_words(notes))])


def _notes_on(truth: Mapping[str, Any], labelled: Labelled) -> dict[str, Any]:
    """Return what else is to be known of scored answers; those that are missing are the scorer's to refuse."""
    empty = sum(answer in (None, "", "[]") or answer != answer or answer == [] for answer in labelled.answers.values())
    extra = sum(name not in truth for name in labelled.answers)
    return {"extra_names": extra, "empty_answers": empty, "labels_from": labelled.source}


def _in_words(notes: Mapping[str, Any]) -> str:
    """Return notes as the line below a table."""
    words = {
        "extra_names": "answers to unknown names, ignored",
        "empty_answers": "empty answers",
        "unknown_words": "unknown words in answers",
        "unknown_labels": "unknown words in labels",
    }
    counts = [f"{notes[key]} {what}" for key, what in words.items() if notes.get(key)]
    return "; ".join([f"labels: {notes['labels_from']}", *counts])


def labels_report(args: argparse.Namespace) -> Report:
    """Find labels, and sentiments if asked, by a language model, keep them, and compare with the vocabulary's."""
    from affect.evaluate.label_model import LabelModel  # which needs torch

    wheels = read_wheels(args.wheels)
    vocabulary = Vocabulary(wheels)
    model = LabelModel(args.model, args.device, args.batch_size)
    content, rows = {}, []
    for path in args.pred:
        texts = {name: text or "" for name, text in read_answers(path, args.pred_column).items()}
        if path.suffix == ".json" and not are_texts(texts.values()):
            raise ValueError(f"{path}: expected free text, found a JSON object of labels")
        found = _asked(texts, model.labels(list(texts.values())), f"labels of {path.name}")
        write_labels(labels_path(path), found, model.name)
        if args.sentiment:
            sentiments = _asked(texts, model.sentiments(list(found.values())), f"sentiments of {path.name}")
            write_labels(labels_path(path, sentiment=True), sentiments, model.name)
        words = {name: vocabulary.find(text) for name, text in texts.items()}
        overlap = float(np.mean([overlaps(labels, words[name], wheels) for name, labels in found.items()]))
        agreement = {"overlap": overlap, "fscore": ew_scores(found, words, wheels).values["fscore"]}
        content[str(path)] = {"labels": str(labels_path(path)), "n": len(texts), "agreement": agreement}
        row = {"file": path.name, "share a cluster": overlap, "fscore": agreement["fscore"], "n": len(texts)}
        rows.append(row)
    note = f"labels of {model.name} as the truth, those of the wheel vocabulary as answers"
    return Report({"labels_from": model.name, "files": content}, [ResultTable("agreement", rows, note)])


def _asked(texts: Mapping[str, str], answers: Iterable[str], what: str) -> dict[str, str]:
    """Return name -> what a model answered, with a progress bar."""
    return dict(zip(texts, track(answers, what, total=len(texts), console=Console(stderr=True)), strict=True))


def unibench_report(args: argparse.Namespace) -> Report:
    """Score every checkpoint of one or two systems on every test set."""
    wheels = read_wheels(args.wheels)
    vocabulary = Vocabulary(wheels)
    truths = read_truths(args.gt)
    names = [truth.dataset for truth in truths]
    if args.validation and args.validation not in names:
        raise ValueError(f"{args.gt}: expected the validation set {args.validation!r}, found {', '.join(names)}")
    scored = []
    for root, run in [(args.pred, args.run), *([(args.against, args.against_run)] if args.against else [])]:
        files = [
            (truth, name, path)
            for truth in truths
            for name, path in find_answers(root, truth.dataset, run, args.kind, args.epochs).items()
        ]
        scores: Results = {truth.dataset: {} for truth in truths}
        for truth, name, path in track(files, f"scoring {root}", console=Console(stderr=True), transient=True):
            scores[truth.dataset][name] = score_file(path, truth, wheels, vocabulary)
        scored.append(scores)
    return benchmark_report(scored, args.validation, args.draws, args.seed)


def grounding_report(args: argparse.Namespace) -> Report:
    """Compare what texts say of faces with what was measured there."""
    note = (
        "precision: mentioned action units that are there; recall: those there that are mentioned; faultless: texts "
        "with mentions, all of them right"
    )
    if args.sentences:
        found = _sentences_grounding(args.sentences, args.at_least)
    else:
        answers = read_records(args.pred, "name", "dataset", "answer", "streams", "missing", "action_units")
        require_once((answer["name"] for answer in answers), args.pred)
        if args.au:
            answers = [answer if answer["action_units"] else _with_units(answer, args.au) for answer in answers]
        found = {"answers": ground_answers(answers, args.at_least)}
        note = f"{note}; absent: texts that speak of a stream the clip lacks"
    contents = {
        of: {name: getattr(each, name) for name in SHARES}
        | {**asdict(each), **{key: dict(getattr(each, key).most_common()) for key in ("absent_from", "unfounded")}}
        for of, each in found.items()
    }
    if args.sentences:  # which say nothing of streams
        contents = {
            of: {key: value for key, value in content.items() if not key.startswith("absent")}
            for of, content in contents.items()
        }
    rows = [
        {"of": of}
        | {key.removesuffix("_share"): content[key] for key in (*SHARES, "mentions", "texts") if key in content}
        for of, content in contents.items()
    ]
    return Report(contents if args.sentences else contents["answers"], [ResultTable("grounding", rows, note)])


def _sentences_grounding(path: Path, at_least: float) -> dict[str, Grounding]:
    """Return the grounding of the texts of AU records, and that of the templates for the same intensities."""
    records = read_records(path, "input", "output")
    units = [_described_units(record, f"{path}: record {i}") for i, record in enumerate(records, start=1)]
    shown = [{key.removesuffix("_r") for key, value in aus.items() if value >= at_least} for aus in units]
    texts = {"descriptions": [record["output"] for record in records], "templates": map(describe_frame, units)}
    return {of: ground(zip(each, shown, strict=True)) for of, each in texts.items()}


def _described_units(record: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return the action units of a record whose input ends in `AU descriptions: Name (intensity: 1.23), …`."""
    _, found, described = record["input"].partition("AU descriptions:")
    if not found:
        raise ValueError(f"{where}: expected an input with 'AU descriptions:', found none; name another file")
    return parse_au_description("" if described.strip() == "none" else described)


def _with_units(answer: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return an answer with its clip's highest intensities from its AU JSON."""
    highest: dict[str, float] = {}
    for frame in read_au_json(find_au_json(root, answer["dataset"], answer["name"])).per_frame_au_descriptions:
        for key, value in frame["active_aus"].items():
            unit = key.removesuffix("_r")
            highest[unit] = max(value, highest.get(unit, 0.0))
    return {**answer, "action_units": highest}
