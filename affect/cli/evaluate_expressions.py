"""`tools/evaluate.py fer`: a network of the image track on labelled images, or labels that are there already."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from affect.core.failures import failure_lines, write_failures
from affect.core.plots import draw_bars, draw_confusion
from affect.evaluate.classification import class_rows, classification_scores, confusion
from affect.evaluate.errors import require_names
from affect.evaluate.result_tables import Report, ResultTable
from affect.evaluate.results import read_answers
from affect.expressions.scores import draw_evaluation, evaluation_report, expression_scores

if TYPE_CHECKING:  # other commands of evaluate.py need no torch
    from affect.expressions.config import ImagesConfig
    from affect.expressions.evaluation import Evaluation
    from affect.expressions.image_set import ImageSet
    from affect.expressions.network_file import ModelCard

SPLITS = ("test", "val")
"""Splits that are scored when none is named, the first of them that is there."""
DIVIDED = ("val_split", "test_split", "split_seed")
"""What decides which image is in which split."""
OF_NETWORKS = ("data_root", "data_type", "votes_csv", *DIVIDED, "align", "flip", "gallery")
"""Flags that say nothing about labels that are there already."""
OUTPUT = Path("output/evaluate_fer")
"""Where failures are listed when no folder is named."""


def add_arguments(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of the two ways to score expressions."""
    add("--ckpt", type=Path, help="network of train.py: best.safetensors, last.safetensors or the run's folder")
    add("--data_root", "--data", "--data_csv", help="labelled images: folders or CSV file; default: the run's")
    add("--data_type", help="known data set, for numbered folders: RAF-DB, AffectNet-7, …")
    add("--votes_csv", help="FER+ votes for the images of a FER2013 CSV file")
    add("--split", default="", help="test, val or train; default: test where there is one, else val; of a table all")
    for name, kind in zip(DIVIDED, (float, float, int), strict=True):
        add(f"--{name}", type=kind, help="how images are divided; default: as the run's config.yaml says")
    add("--align", action="store_true", help="find faces and turn them upright; default: as the run did")
    add("--flip", action="store_true", help="mean of the probabilities of an image and its mirror image")
    add("--batch-size", "--batch_size", type=_positive, default=64)
    add("--num_workers", "--workers", type=int, default=2, help="processes that read images")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    add("--gallery", type=_positive, metavar="N", help="with --pictures: N right and N wrong faces of each class")
    add("--gt", type=Path, help="instead of --ckpt: name -> label: JSON or table")
    add("--pred", type=Path, help="with --gt: name -> label: JSON or table")
    add("--pictures", type=Path, metavar="FOLDER", help="draw confusion matrix, bars, reliability and gallery there")


def expression_report(args: argparse.Namespace) -> Report:
    """Score a network on images, or answers against the truth."""
    if bool(args.ckpt) == bool(args.gt and args.pred) or (args.ckpt and (args.gt or args.pred)):
        raise ValueError("expected --ckpt (with --data_root), or --gt and --pred; give one of the two")
    idle = [f"--{name}" for name in OF_NETWORKS if getattr(args, name)]
    if args.gt and idle:
        raise ValueError(f"{', '.join(idle)}: expected only with --ckpt, found --gt; leave it out")
    if args.gallery and not args.pictures:
        raise ValueError("--gallery needs a folder to draw into; add --pictures FOLDER")
    return network_report(args) if args.ckpt else answers_report(args)


def network_report(args: argparse.Namespace) -> Report:
    """Score a network on one split of labelled images."""
    from affect.core.device import keep_freed_memory, pick_device
    from affect.expressions.evaluation import evaluate
    from affect.expressions.models import load_model
    from affect.expressions.network_file import find_model

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    device = pick_device(args.device, "--device")
    if device.type == "cpu":
        keep_freed_memory()
    path = find_model(args.ckpt)
    model, card = load_model(path, str(device))
    images, divided = images_section(args, path, card)
    image_set = open_split(args, images, card)
    print(f"{image_set.split}: {len(image_set)} images of {images.data_root}; {divided}", file=sys.stderr)
    found = evaluate(
        model, image_set, args.batch_size, device, args.num_workers, flip=args.flip, multi_label=card.multi_label
    )
    failures = [*image_set.failures, *found.failures]
    file = (args.pictures or (args.out.parent if args.out else OUTPUT)) / "failures.csv"
    if write_failures(file, failures, empty=False):
        last = f"{len(failures)} images or folders could not be used: {file}"
        print(*failure_lines(failures), last, sep="\n", file=sys.stderr)
    if not found.names:
        raise ValueError(f"{images.data_root}: none of the {len(image_set)} images can be read; see failures.csv")
    scores = expression_scores(found, card.classes, card.multi_label)
    title = f"{path.parent.name}/{path.name} on {image_set.split} of {image_set.name}"
    if args.pictures:
        draw_evaluation(args.pictures, scores, card.classes, title)
    if args.gallery:
        draw_samples(args, image_set, found, card, title)
    about = {"ckpt": str(path), "data_root": images.data_root, "split": image_set.split, "divided": divided}
    about |= {"flip": args.flip, "align": images.align, "failures": len(failures)}
    return evaluation_report(found, scores, card.classes, about, title)


def images_section(args: argparse.Namespace, path: Path, card: ModelCard) -> tuple[ImagesConfig, str]:
    """Return which images are scored, and in words how they are divided into splits and where that is from.

    What is typed counts first, then the configuration that the run left beside its checkpoint; what that says of the
    data set itself holds only for the very data that were trained on.
    """
    from affect.core.config import parse
    from affect.expressions.config import FerConfig, load_fer_config

    file = path.parent / "config.yaml"
    trained = load_fer_config(file).images.model_dump() if file.is_file() else {}
    root = args.data_root or trained.get("data_root")
    if root is None:
        raise ValueError(f"{path}: there is no config.yaml beside it that names its images; add --data_root")
    about_data = ("data_type", "votes_csv", "votes_target")
    same = bool(trained) and Path(root).resolve() == Path(trained["data_root"]).resolve()
    content = {key: trained[key] for key in (*DIVIDED, *(about_data if same else ())) if key in trained}
    if card.multi_label:
        content["votes_target"] = "multi_label"
    typed = {key: getattr(args, key) for key in (*DIVIDED, "data_type", "votes_csv") if getattr(args, key) is not None}
    content |= typed | {"data_root": root, "align": args.align or card.aligned}
    images = parse(FerConfig, {"images": content}, "evaluate.py fer").images
    divided = ", ".join(f"{key} {getattr(images, key):g}" for key in DIVIDED)
    source = str(file) if trained else f"defaults, for there is no {file}"
    chosen = [key for key in DIVIDED if key in typed]
    source = f"{', '.join(chosen)} as typed, else {source}" if chosen else source
    return images, f"{divided} ({source})"


def open_split(args: argparse.Namespace, images: ImagesConfig, card: ModelCard) -> ImageSet:
    """Return the split to score, its labels in the order of the network's classes."""
    from affect.expressions.image_set import open_images

    wanted = (args.split,) if args.split else SPLITS
    sets = open_images(images, card.input, wanted, classes=card.classes)
    split = next((name for name in wanted if name in sets), None)
    if split is None:
        raise ValueError(
            f"{images.data_root}: has no {' or '.join(wanted)} images; name another --split, or a share by --val_split"
        )
    return sets[split]


def draw_samples(args: argparse.Namespace, image_set: ImageSet, found: Evaluation, card: ModelCard, title: str) -> None:
    """Draw the gallery, and write its faces as single pictures, too."""
    from affect.expressions.gallery import draw_gallery, surest_cases, write_samples

    def read(name: str) -> np.ndarray:
        return image_set.raw(image_set.names.index(name))

    cases = surest_cases(found, card.classes, card.multi_label, args.gallery)
    draw_gallery(args.pictures / "gallery.png", cases, read, title)
    write_samples(args.pictures / "samples", cases, read)


def answers_report(args: argparse.Namespace) -> Report:
    """Score one label an image."""
    truth, answers = read_answers(args.gt, split=args.split), read_answers(args.pred)
    require_names(truth, "answer", answers)
    for path, values in ((args.gt, truth), (args.pred, answers)):
        wrong = [name for name, value in values.items() if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"{path}: {wrong[0]}: expected one label, found {values[wrong[0]]!r}")
    labels = sorted(set(truth.values()))
    counts = confusion(list(truth.values()), [answers[name] for name in truth], labels)
    scores = classification_scores(counts)
    if args.pictures:
        draw_confusion(args.pictures / "confusion.png", counts, labels)
        bars = {name: scores.per_class[name] for name in ("recall", "precision")}
        draw_bars(args.pictures / "labels.png", labels, bars)
    per_label = class_rows(scores.per_class, labels)
    content = {**scores.means, "n": len(truth)}
    extra = sum(name not in truth for name in answers)
    tables = [ResultTable("expressions", [content]), ResultTable("labels", per_label)]
    return Report({**content, "extra_names": extra, "per_label": per_label}, tables)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)
