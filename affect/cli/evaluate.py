"""Score answers as the published benchmark does, and with intervals, tests and checks that it does not have.

    python tools/evaluate.py ew --gt truth.json --pred answers.json --wheels wheels --level both --out scores.json
    python tools/evaluate.py hitrate --gt truth.json --pred answers.jsonl --wheels wheels --pictures output/pictures
    python tools/evaluate.py sentiment --gt valences.json --pred sentiments.json
    python tools/evaluate.py fer --ckpt runs/x/best.safetensors --data_root images --pictures output/pictures
    python tools/evaluate.py fer --gt labels.json --pred predicted.json
    python tools/evaluate.py labels --pred answers.jsonl --model Qwen25 --wheels wheels --device cuda:0
    python tools/evaluate.py unibench --gt truths.json --pred output/results --wheels wheels --against output/older
    python tools/evaluate.py grounding --pred answers.jsonl
    python tools/evaluate.py grounding --sentences records.jsonl

Truth and answers are JSON objects name -> value; answers may also be the JSON lines of inference.py or the published
.npz. Tables go to the screen, one JSON object to --out or the standard output. Ends with code 2 on bad input, with 1
where the rest was scored but some images could not be read.
docs/evaluation.md says what every number means.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from affect.cli.evaluate_expressions import add_arguments as add_fer_arguments
from affect.cli.evaluate_expressions import expression_report
from affect.core.au_json import find_au_json, read_au_json
from affect.core.facs import parse_au_description
from affect.evaluate.answers import split_labels
from affect.evaluate.classification import confusion, recall_and_precision
from affect.evaluate.emotion_wheel import EmotionWheels, WheelScores, ew_scores, hit_scores, overlaps, read_wheels
from affect.evaluate.errors import ScoreError
from affect.evaluate.grounding import Grounding, ground, ground_answers
from affect.evaluate.mer_unibench import Results, Task, find_answers, read_truth, read_truths, score_file
from affect.evaluate.mer_unibench_report import benchmark_report
from affect.evaluate.report import MEAN, Report, ResultTable
from affect.evaluate.results import (
    Labelled,
    labels_path,
    read_answers,
    read_labels,
    read_records,
    read_sentiments,
    write_labels,
)
from affect.evaluate.sentiment import NEGATIVE, NEUTRAL, POSITIVE, sentiment_scores
from affect.evaluate.vocabulary import Vocabulary
from extractors.au.templates import describe_frame

SHARES = ("precision", "recall", "faultless_share", "absent_share")
"""Shares of a `Grounding` that are reported."""


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command and return the exit code."""
    args = parse_arguments(arguments)
    try:
        report = args.make_report(args)
        report.emit(args.out, args.csv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.content.get("failures") else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, make_report: Any, what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(make_report=make_report)
        sub.add_argument("--out", type=Path, help="JSON file for the scores (default: the standard output)")
        sub.add_argument("--csv", type=Path, help="CSV file for the tables")
        return sub

    for task, make_report, what in (
        (Task.EW, wheel_report, "open-vocabulary emotions: F, precision and recall on five emotion wheels"),
        (Task.HIT_RATE, wheel_report, "one label of a fixed list a clip: hit rate and mscore on five emotion wheels"),
        (Task.SENTIMENT, sentiment_report, "valences: weighted F1 and accuracy of positive or not"),
    ):
        sub = command(task, make_report, what)
        sub.set_defaults(task=task)
        sub.add_argument("--gt", type=Path, required=True, help="name -> label or valence")
        sub.add_argument("--pred", type=Path, required=True, help="name -> answer: JSON, JSON lines or .npz")
        with_tables = task != Task.SENTIMENT
        sub.add_argument("--wheels", type=Path, required=with_tables, help="folder of the emotion wheel tables")
        sub.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw confusion matrix, bars and wheel there")
        if task == Task.EW:
            sub.add_argument("--level", default="1", choices=["1", "2", "both"], help="level that joins words")
    sub = command("fer", expression_report, "facial expressions: accuracy, macro F1, UAR, each label, calibration")
    add_fer_arguments(sub.add_argument)
    sub = command("labels", labels_report, "find labels in free text with a language model; keep them beside the text")
    sub.add_argument("--pred", type=Path, required=True, nargs="+", help="files of answers: JSON lines or .npz")
    sub.add_argument("--model", required=True, help="folder, hub id or known name of a causal language model")
    sub.add_argument("--sentiment", action="store_true", help="go on to positive, negative or neutral")
    sub.add_argument("--wheels", type=Path, required=True, help="tables for comparing with labels that need no model")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--batch-size", type=int, default=8)
    sub = command("unibench", unibench_report, "checkpoints of a system on the test sets of MER-UniBench")
    sub.add_argument("--gt", type=Path, required=True, help="JSON: test set -> name -> label, or -> a label file")
    sub.add_argument("--pred", required=True, metavar="ROOT", help="answers: {ROOT}-{test set}/{run}/{checkpoint}…")
    sub.add_argument("--wheels", type=Path, required=True)
    sub.add_argument("--run", help="which run, where there are several")
    sub.add_argument("--against", metavar="ROOT", help="second system, compared on the same clips")
    sub.add_argument("--against-run", help="which run of it")
    sub.add_argument("--kind", default="description", choices=["description", "ovlabel"], help="question asked")
    sub.add_argument("--epochs", type=parse_epochs, default=(), metavar="30-60", help="epochs, e.g. 30-60 or 30,35")
    sub.add_argument("--validation", metavar="SET", help="set of --gt that chooses the checkpoint and is not reported")
    sub.add_argument("--draws", type=int, default=1000, help="bootstrap and permutation draws")
    sub.add_argument("--seed", type=int, default=0)
    sub = command("grounding", grounding_report, "do texts name the action units and streams that the clip has?")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--pred", type=Path, help="answers as JSON lines of inference.py")
    source.add_argument("--sentences", type=Path, help="JSON lines with AU descriptions (input) and a text (output)")
    sub.add_argument("--au", type=Path, help="root of AU JSON files, for answers without action units")
    sub.add_argument("--at-least", type=float, default=0.0, help="intensity (0 to 5) that counts as shown")
    return parser.parse_args(arguments)


def parse_epochs(text: str) -> tuple[int, ...]:
    """Return the epochs of "30-60" or "30,35,40"."""
    epochs: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise argparse.ArgumentTypeError(f"expected epochs such as 30-60 or 30,35, found {text!r}")
        epochs += range(int(first), int(last or first) + 1)
    return tuple(epochs)


def wheel_report(args: argparse.Namespace) -> Report:
    """Score labels on the emotion wheels: EW or hit rate."""
    wheels = read_wheels(args.wheels)
    truth = read_truth(args.gt, args.task)
    labelled = read_labels(args.pred, Vocabulary(wheels))
    answers = labelled.answers
    if args.task == Task.HIT_RATE:
        scored = {"hit rate": hit_scores(truth, answers, wheels)}
    else:
        levels = (1, 2) if args.level == "both" else (int(args.level),)
        scored = {f"EW, level {level}": ew_scores(truth, answers, wheels, level) for level in levels}
    notes = notes_on(truth, labelled)
    notes["unknown_words"] = wheels.unknown_words(answers[name] for name in truth).total()
    notes["unknown_labels"] = wheels.unknown_words(truth.values()).total()
    parts = [wheel_content(scores) for scores in scored.values()]
    content = parts[0]
    if len(parts) > 1:
        means = {key: (parts[0][key] + parts[1][key]) / 2 for key in ("fscore", "precision", "recall")}
        content = {**means, "level1": parts[0], "level2": parts[1]}
    if args.pictures:
        draw_wheel_pictures(args, truth, answers, wheels)
    tables = [wheel_table(title, scores, in_words(notes)) for title, scores in scored.items()]
    return Report({**content, "n": len(truth), **notes}, tables)


def wheel_content(scores: WheelScores) -> dict[str, Any]:
    """Return the means and the scores of each wheel as JSON."""
    per_wheel = [{"wheel": i, **each.scores, "n": each.n} for i, each in enumerate(scores.per_wheel, start=1)]
    return {**scores.means, "per_wheel": per_wheel}


def wheel_table(title: str, scores: WheelScores, note: str) -> ResultTable:
    """Return a table with a row for each wheel and their mean."""
    rows: list[list[Any]] = [[i, *each.scores.values(), each.n] for i, each in enumerate(scores.per_wheel, start=1)]
    return ResultTable(title, ["wheel", *scores.means, "n"], [*rows, [MEAN, *scores.means.values(), ""]], note)


def draw_wheel_pictures(
    args: argparse.Namespace, truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels
) -> None:
    """Draw the clusters of the first wheel and, where each clip has one label, the hit rate of each label."""
    from affect.core.plots import draw_bars
    from affect.evaluate.wheel_pictures import draw_label_pictures

    draw_label_pictures(args.pictures, truth, answers, wheels)
    if args.task == Task.HIT_RATE:
        rates = hit_rates_by_label(truth, answers, wheels)
        draw_bars(args.pictures / "labels.png", list(rates), {"hit rate": list(rates.values())}, "mean over the wheels")


def hit_rates_by_label(truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels) -> dict[str, float]:
    """Return label -> hit rate of its clips, over the wheels that know the label; NaN where none does."""
    rates = {}
    for label in sorted({", ".join(split_labels(value)) for value in truth.values()}):
        clips = {name: value for name, value in truth.items() if ", ".join(split_labels(value)) == label}
        known = [each.scores["hitrate"] for each in hit_scores(clips, answers, wheels).per_wheel if each.n]
        rates[label] = float(np.mean(known)) if known else math.nan
    return rates


def sentiment_report(args: argparse.Namespace) -> Report:
    """Score positive, negative and neutral against valences."""
    truth = read_truth(args.gt, args.task)
    if args.pred.suffix == ".json" or "-sentiment" in args.pred.name:
        labelled = Labelled(read_answers(args.pred), "as given")
    elif args.wheels:
        labelled = read_sentiments(args.pred, Vocabulary(read_wheels(args.wheels)))
    else:
        raise ScoreError(f"{args.pred}: texts become sentiments by the emotion wheels: expected --wheels with a folder")
    scores = sentiment_scores(truth, labelled.answers)
    notes = notes_on(truth, labelled)
    notes["unknown_words"] = sum(labelled.answers[name] not in (POSITIVE, NEGATIVE, NEUTRAL) for name in truth)
    if args.pictures:
        from affect.core.plots import draw_bars, draw_confusion

        names, classes = scores.tally.names, [POSITIVE, NEGATIVE]
        counts = confusion(
            [POSITIVE if truth[name] > 0 else NEGATIVE for name in names],
            [labelled.answers[name] for name in names],
            classes,
        )
        recall, precision = recall_and_precision(counts)
        draw_confusion(args.pictures / "confusion.png", counts, classes)
        draw_bars(args.pictures / "labels.png", classes, {"recall": recall, "precision": precision})
    row = ["all", scores.waf, scores.acc, scores.n]
    content = {"waf": scores.waf, "acc": scores.acc, "n": scores.n, **notes}
    return Report(content, [ResultTable("sentiment", ["clips", "waf", "acc", "n"], [row], in_words(notes))])


def notes_on(truth: Mapping[str, Any], labelled: Labelled) -> dict[str, Any]:
    """Return what else is to be known of scored answers; those that are missing are the scorer's to refuse."""
    empty = sum(answer in (None, "", "[]") or answer != answer or answer == [] for answer in labelled.answers.values())
    extra = sum(name not in truth for name in labelled.answers)
    return {"extra_names": extra, "empty_answers": empty, "labels_from": labelled.source}


def in_words(notes: Mapping[str, Any]) -> str:
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
    from affect.evaluate.label_model import LabelModel

    wheels = read_wheels(args.wheels)
    vocabulary = Vocabulary(wheels)
    model = LabelModel(args.model, args.device, args.batch_size)
    content, rows = {}, []
    for path in args.pred:
        if path.suffix == ".json":
            raise ScoreError(f"{path}: expected free text as JSON lines or .npz, found a JSON object of labels")
        texts = {name: text or "" for name, text in read_answers(path).items()}
        found = asked(texts, model.labels(list(texts.values())), f"labels of {path.name}")
        write_labels(labels_path(path), found, model.name)
        if args.sentiment:
            sentiments = asked(texts, model.sentiments(list(found.values())), f"sentiments of {path.name}")
            write_labels(labels_path(path, sentiment=True), sentiments, model.name)
        agreement = agreement_of(found, {name: vocabulary.find(text) for name, text in texts.items()}, wheels)
        content[str(path)] = {"labels": str(labels_path(path)), "n": len(texts), "agreement": agreement}
        rows.append([path.name, *agreement.values(), len(texts)])
    header = ["file", "share a cluster", "fscore", "n"]
    note = f"labels of {model.name} as the truth, those of the wheel vocabulary as answers"
    return Report({"labels_from": model.name, "files": content}, [ResultTable("agreement", header, rows, note)])


def asked(texts: Mapping[str, str], answers: Iterable[str], what: str) -> dict[str, str]:
    """Return name -> what a model answered, with a progress bar."""
    return dict(zip(texts, track(answers, what, total=len(texts), console=Console(stderr=True)), strict=True))


def agreement_of(first: Mapping[str, Any], second: Mapping[str, Any], wheels: EmotionWheels) -> dict[str, float]:
    """Return how far two makers of labels agree: share of texts with a cluster in common (or both neutral), EW F."""
    common = [overlaps(labels, second[name], wheels) for name, labels in first.items()]
    return {"overlap": float(np.mean(common)), "fscore": ew_scores(first, second, wheels).means["fscore"]}


def unibench_report(args: argparse.Namespace) -> Report:
    """Score every checkpoint of one or two systems on every test set."""
    wheels = read_wheels(args.wheels)
    vocabulary = Vocabulary(wheels)
    truths = read_truths(args.gt)
    names = [truth.dataset for truth in truths]
    if args.validation and args.validation not in names:
        raise ScoreError(f"{args.gt}: expected the validation set {args.validation!r}, found {', '.join(names)}")
    systems = [(args.pred, args.run), *([(args.against, args.against_run)] if args.against else [])]
    scored = []
    for root, run in systems:
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
    if args.sentences:
        records = read_records(args.sentences, "input", "output")
        units = [active_units(record, f"{args.sentences}: record {i}") for i, record in enumerate(records, start=1)]
        shown = [{key.removesuffix("_r") for key, value in aus.items() if value >= args.at_least} for aus in units]
        grounded = {
            "descriptions": ground(zip((record["output"] for record in records), shown, strict=True)),
            "templates": ground(zip(map(describe_frame, units), shown, strict=True)),
        }
    else:
        answers = read_records(args.pred, "name", "dataset", "answer", "streams", "missing", "action_units")
        if args.au:
            answers = [with_units(answer, args.au) for answer in answers]
        grounded = {"answers": ground_answers(answers, args.at_least)}
    content = {name: grounding_content(each, bool(args.pred)) for name, each in grounded.items()}
    keys = [key for key in SHARES if key in next(iter(content.values()))]
    rows = [[name, *(each[key] for key in keys), each["mentions"], each["texts"]] for name, each in content.items()]
    header = ["of", *(key.removesuffix("_share") for key in keys), "mentions", "texts"]
    note = (
        "precision: mentioned action units that are there; recall: those there that are mentioned; faultless: texts "
        "with mentions, all of them right"
        + ("; absent: texts that speak of a stream the clip lacks" if args.pred else "")
    )
    return Report(content if args.sentences else content["answers"], [ResultTable("grounding", header, rows, note)])


def grounding_content(grounding: Grounding, with_streams: bool) -> dict[str, Any]:
    """Return a grounding as JSON: its shares, then its counts; `with_streams`: those of absent streams, too."""
    shares = {name: getattr(grounding, name) for name in SHARES}
    content = {**shares, **asdict(grounding), "unfounded": dict(grounding.unfounded.most_common())}
    return {key: value for key, value in content.items() if with_streams or not key.startswith("absent")}


def active_units(record: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return the action units of a record whose input ends in `AU descriptions: Name (intensity: 1.23), …`."""
    _, found, described = record["input"].partition("AU descriptions:")
    if not found:
        raise ScoreError(f"{where}: expected an input with 'AU descriptions:', found none; name another file")
    return parse_au_description("" if described.strip() == "none" else described)


def with_units(answer: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return an answer with its clip's highest intensities from its AU JSON, unless it has them."""
    if answer["action_units"]:
        return answer
    highest: dict[str, float] = {}
    for frame in read_au_json(find_au_json(root, answer["dataset"], answer["name"])).per_frame_au_descriptions:
        for key, value in (frame.get("active_aus") or parse_au_description(frame.get("au_description", ""))).items():
            unit = key.removesuffix("_r")
            highest[unit] = max(value, highest.get(unit, 0.0))
    return {**answer, "action_units": highest}
