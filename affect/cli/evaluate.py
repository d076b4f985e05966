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

Truth and answers are JSON objects name -> value, JSON lines, tables (name and a column; --gt-column, --pred-column) or
the published .npz. Tables go to the screen, one JSON object to --out or the standard output. Ends with code 2 on bad
input, with 1 where the rest was scored but some images could not be read.
docs/evaluation.md says what every number means.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from affect.cli import add_offline, told
from affect.cli.evaluate_expressions import add_arguments
from affect.data.known_datasets import Task
from affect.data.tables import read_table
from affect.evaluate.errors import MissingNamesError

OF_ANSWERS = "affect.cli.evaluate_answers"
"""The module of the reports on answers, imported when one is asked for."""


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command and return the exit code."""
    args = parse_arguments(arguments)
    from affect.evaluate.results import TABLES

    truth, split = getattr(args, "gt", None), getattr(args, "split", "")
    try:
        if truth and split and truth.suffix not in TABLES:
            raise ValueError(f"--split {split}: expected a table with a column split, found {truth}; leave it out")
        _require_own_files(args)
        report = getattr(import_module(args.module), args.make_report)(args)
        report.emit(args.out, args.csv)
        for what in ("out", "csv", "pictures"):
            if place := getattr(args, what, None):
                print(f"{what}: {place}", file=sys.stderr)
    except (ValueError, OSError) as error:
        lacking = isinstance(error, MissingNamesError) and truth and truth.suffix in TABLES and not split
        hint = "; or name the rows to score with --split" if lacking and "split" in read_table(truth) else ""
        print(f"error: {told(error)}{hint}", file=sys.stderr)
        return 2
    return 1 if report.content.get("failures") else 0


def _require_own_files(args: argparse.Namespace) -> None:
    """Raise ValueError where a file that is to be written is one that is read, or both are one."""
    for what, place in (("out", args.out), ("csv", args.csv)):
        for flag, value in vars(args).items():
            values = value if isinstance(value, list) else [value]
            others = [Path(each) for each in values if isinstance(each, str | Path)]
            if place and flag != what and place.resolve() in [other.resolve() for other in others]:
                raise ValueError(f"--{what} {place}: expected a file of its own, found that of --{flag}; name another")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, make_report: str, what: str, module: str = OF_ANSWERS) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(module=module, make_report=make_report)
        sub.add_argument("--out", type=Path, help="JSON file for the scores (default: the standard output)")
        sub.add_argument("--csv", type=Path, help="CSV file for the tables")
        return sub

    for task, make_report, what in (
        (Task.EW, "wheel_report", "open-vocabulary emotions: F, precision and recall on five emotion wheels"),
        (Task.HIT_RATE, "wheel_report", "one label of a fixed list a clip: hit rate and mscore on five emotion wheels"),
        (Task.SENTIMENT, "sentiment_report", "valences: weighted F1 and accuracy of positive or not"),
    ):
        sub = command(task, make_report, what)
        sub.set_defaults(task=task)
        sub.add_argument("--gt", type=Path, required=True, help="name -> label or valence")
        sub.add_argument("--gt-column", default="", help="column of it, where that is not openset or valence")
        sub.add_argument("--split", default="", help="rows to score, by the column split of a table; default: all")
        sub.add_argument("--pred", type=Path, required=True, help="name -> answer: JSON, JSON lines, table or .npz")
        sub.add_argument("--pred-column", default="", help="column of it, where that is not answer or openset")
        with_tables = task != Task.SENTIMENT
        sub.add_argument("--wheels", type=Path, required=with_tables, help="folder of the emotion wheel tables")
        sub.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw confusion matrix, bars and wheel there")
        if task == Task.EW:
            sub.add_argument("--level", default="1", choices=["1", "2", "both"], help="level that joins words")
    what = "facial expressions: accuracy, macro F1, UAR, each label, calibration"
    add_arguments(command("fer", "expression_report", what, "affect.cli.evaluate_expressions").add_argument)
    sub = command("labels", "labels_report", "find labels in free text by a language model; keep them beside the text")
    sub.add_argument("--pred", type=Path, required=True, nargs="+", help="files of answers: JSON lines, tables or .npz")
    sub.add_argument("--pred-column", default="", help="column of a table, where that is not answer")
    sub.add_argument("--model", required=True, help="folder, hub id or known name of a causal language model")
    add_offline(sub)
    sub.add_argument("--sentiment", action="store_true", help="go on to positive, negative or neutral")
    sub.add_argument("--wheels", type=Path, required=True, help="tables for comparing with labels that need no model")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--batch-size", type=int, default=8)
    sub = command("unibench", "unibench_report", "checkpoints of a system on the test sets of MER-UniBench")
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
    sub = command("grounding", "grounding_report", "do texts name the action units and streams that the clip has?")
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
