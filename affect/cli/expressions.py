"""Expressions of the faces in pictures, videos and cameras: found, named, written down, drawn and explained."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from affect.core.device import pick_device
from affect.core.errors import MediaError
from affect.core.failures import Failure, write_failures
from affect.core.files import atomic_write
from affect.core.typed_yaml import ConfigError
from affect.expressions.config import PredictConfig
from affect.expressions.drawing import VideoWriter, annotate, enlarge
from affect.expressions.explain import draw_heat, grad_cam
from affect.expressions.folders import SUFFIXES
from affect.expressions.image_files import ImageError, read_image, to_input
from affect.expressions.models import ExpressionModel, load_model
from affect.expressions.network_file import ModelCard, find_model
from affect.expressions.predict import Box, FacePrediction, name_expressions, predict, uniform_warning
from affect.faces.align import MARGIN, find_all_faces, straighten_face
from affect.faces.finders import Box as Square
from affect.faces.finders import FaceFinder, build_face_finder

PREDICTIONS, PICTURES, EXPLAINED = "predictions.jsonl", "pictures", "explained"
"""What a run writes into its output folder."""
SHOWN = 20
"""Faces and failures that are printed; the files have all."""
_LONGEST_JPEG = 65_500  # pixels of a side
_PENDING_PIXELS = 50_000_000  # of pictures that wait for a batch of faces to be full


@dataclass(frozen=True)
class FoundFace:
    """A face in a picture."""

    box: Box
    picture: np.ndarray
    """uint8 RGB [H, W, 3]: the face, cut out."""


@dataclass(frozen=True)
class Seen:
    """A picture and the faces in it."""

    name: str
    picture: np.ndarray
    """uint8 RGB [H, W, 3]."""
    crops: list[np.ndarray]
    """uint8 RGB [H, W, 3] each: the faces as the network saw them."""
    faces: list[FacePrediction]

    def as_json(self) -> dict[str, Any]:
        """Return what is written into predictions.jsonl."""
        height, width = self.picture.shape[:2]
        return {"name": self.name, "size": [width, height], "faces": [face.as_json() for face in self.faces]}


@dataclass
class ExpressionReader:
    """A network, and what finds the faces that it names the expressions of."""

    model: ExpressionModel
    card: ModelCard
    config: PredictConfig
    checkpoint: Path
    finder: FaceFinder | None
    """None: a picture is one face, cut out already."""

    def look(self, pictures: Iterable[tuple[str, np.ndarray]]) -> Iterator[Seen]:
        """Yield every picture (name, uint8 RGB [H, W, 3]) with its faces; faces of several share a batch."""
        waiting: list[tuple[str, np.ndarray, list[FoundFace]]] = []
        for name, picture in pictures:
            waiting.append((name, picture, self.find(picture)))
            faces = sum(len(found) for _, _, found in waiting)
            if faces >= self.config.batch_size or sum(each[1].size for each in waiting) >= 3 * _PENDING_PIXELS:
                yield from self._name(waiting)
                waiting = []
        yield from self._name(waiting)

    def find(self, picture: np.ndarray) -> list[FoundFace]:
        """Return the faces in a picture, the largest first; the whole of it where it is one."""
        if self.finder is None:
            height, width = picture.shape[:2]
            return [FoundFace((0, 0, width, height), picture)]
        align = self.card.aligned if self.config.align is None else self.config.align
        found = []
        for square in find_all_faces(picture, self.finder):
            left, top, right, bottom = _within(picture, square, MARGIN)
            crop = picture[top:bottom, left:right]
            if align:
                crop = straighten_face(picture, square, tilt=square.tilt)
            found.append(FoundFace(_within(picture, square), crop))
        return found

    def explain(self, seen: Seen) -> list[np.ndarray]:
        """Return for each face uint8 RGB [H, 2 W, 3]: the face, and what in it speaks for its likeliest class."""
        heats = []
        for crop, face in zip(seen.crops, seen.faces, strict=True):
            image = to_input(crop, self.card.input)[None].to(next(self.model.parameters()).device)
            likeliest = max(range(len(self.card.classes)), key=list(face.probabilities.values()).__getitem__)
            (heat,) = grad_cam(self.model, image, torch.tensor([likeliest]))
            heats.append(draw_heat(enlarge(crop)[0], heat))
        return heats

    def _name(self, waiting: Sequence[tuple[str, np.ndarray, list[FoundFace]]]) -> Iterator[Seen]:
        crops = [face.picture for _, _, found in waiting for face in found]
        boxes = [face.box for _, _, found in waiting for face in found]
        config = self.config
        probabilities = predict(self.model, self.card, crops, config.flip, config.batch_size)
        named = iter(name_expressions(probabilities, self.card, boxes, config.min_margin))
        for name, picture, found in waiting:
            yield Seen(name, picture, [face.picture for face in found], [next(named) for _ in found])


@dataclass
class Findings:
    """What became of a run."""

    records: list[dict[str, Any]] = field(default_factory=list)
    """As in predictions.jsonl."""
    failures: list[Failure] = field(default_factory=list)

    def add(self, record: dict[str, Any], lines: Any) -> None:
        """Keep a record and write it as a line of JSON."""
        self.records.append(record)
        # a name that is no UTF-8 is escaped, as JSON escapes it anyway
        lines.write(json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def open_reader(config: PredictConfig) -> ExpressionReader:
    """Return the network of a configuration with its face finder (raises ConfigError, or what they raise)."""
    if config.ckpt is None:
        raise ConfigError("predict.ckpt: expected best.safetensors or a run's folder, found nothing; or give --ckpt")
    if config.align and config.faces == "whole":
        raise ConfigError("predict.align turns faces that are found; with predict.faces whole none is, so drop one")
    path = find_model(config.ckpt)
    model, card = load_model(path, str(pick_device(config.device, "predict.device")))
    finder = build_face_finder(config.face_finder) if config.faces == "find" else None
    return ExpressionReader(model, card, config, path, finder)


def list_images(paths: Iterable[Path]) -> tuple[list[Path], list[Failure]]:
    """Return the pictures that paths of files and folders (with those below) name, each once, and empty folders.

    Of a folder the files with an ending of a picture count; a file that is named is a picture by being so.
    """
    files: list[Path] = []
    failures = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        inside = sorted(file for file in inside if not file.name.startswith("."))
        if not inside:
            failures.append(Failure(str(path), "read", f"{path}: there is no picture in this folder; name another"))
        files += inside
    return list(dict.fromkeys(files)), failures


def name_images(reader: ExpressionReader, paths: Sequence[Path], folder: Path, explain: bool = False) -> Findings:
    """Name the expressions in pictures: predictions.jsonl, marked pictures and, if asked, heat maps in `folder`.

    A picture that cannot be read is among the failures, one without a face has none in its record.
    """
    files, failures = list_images(paths)
    _refuse_own_output(files, folder)
    findings = Findings(failures=failures)
    names = _free_names(files)

    def readable() -> Iterator[tuple[str, np.ndarray]]:
        for file in _tracked(files):
            try:
                yield str(file), read_image(file)
            except ImageError as error:
                findings.failures.append(Failure(str(file), "read", str(error)))

    with atomic_write(folder / PREDICTIONS) as lines:
        for seen in reader.look(readable()):
            stem = names[seen.name]
            picture, factor = enlarge(seen.picture)
            marked = annotate(picture, seen.faces, factor)
            place = _save(folder / PICTURES / f"{stem}.jpg", marked)
            findings.add({**seen.as_json(), "picture": str(place.relative_to(folder))}, lines)
            if explain:
                _explain(reader, seen, folder, stem)
    return findings


def name_video(
    reader: ExpressionReader,
    frames: Iterable[tuple[float, np.ndarray]],
    name: str,
    folder: Path,
    explain: bool = False,
    live: bool = False,
) -> Findings:
    """Name the expressions in frames (s, uint8 RGB [H, W, 3]) that are `frame_rate` apart, and mark them in a video.

    Between these frames the marks stay where they were. live: Ctrl+C ends the video, not the program.
    Raises MediaError where there is no frame.
    """
    _refuse_own_output([Path(name)], folder)
    findings, stem, rate = Findings(), Path(name).stem, reader.config.frame_rate
    seen, due = None, 0.0
    with atomic_write(folder / PREDICTIONS) as lines, VideoWriter(folder / PICTURES / f"{stem}.mp4") as video:
        with suppress(KeyboardInterrupt) if live else nullcontext():
            for index, (moment, frame) in enumerate(_tracked(frames)):
                if moment + 1e-6 >= due:
                    due = (math.floor(moment * rate + 1e-6) + 1) / rate
                    (seen,) = reader.look([(name, frame)])
                    findings.add({**seen.as_json(), "frame": index, "time": round(moment, 3)}, lines)
                    if explain:
                        _explain(reader, seen, folder, f"{stem}-{index:06d}")
                video.write(moment, annotate(frame, seen.faces))
        if seen is None:
            raise MediaError(f"{name}: no frame can be decoded; expected a video, so fetch it again")
    return findings


def camera_frames(number: int, most: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield what a camera sees, at most `most` frames: seconds since the first one, uint8 RGB [H, W, 3].

    Raises MediaError for a camera that is not there or gives no picture.
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)  # it would print what the sentences below say
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise MediaError(f"camera {number} cannot be opened; expected one that is connected, so try another number")
        start, count = None, 0
        while most is None or count < most:
            there, frame = camera.read()
            if not there:
                if not count:
                    raise MediaError(f"camera {number} gives no picture; close what else uses it, or try another")
                return
            now = time.monotonic()
            start = now if start is None else start
            yield now - start, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            count += 1
    finally:
        camera.release()
        cv2.utils.logging.setLogLevel(level)


def report(reader: ExpressionReader, findings: Findings, folder: Path, console: Console) -> int:
    """Print what was found, write failures.csv, and return the exit code: 1 where something could not be read."""
    console.print(_table(findings.records))
    faces = [(record["name"], face["near_uniform"]) for record in findings.records for face in record["faces"]]
    flat = [name for name, near_uniform in faces if near_uniform]
    if warning := uniform_warning(reader.checkpoint, flat, len(faces), reader.card):
        console.print(warning, style="yellow", soft_wrap=True, highlight=False, markup=False)
    total, what = len(findings.records), "frames" if _of_video(findings.records) else "pictures"
    faceless = [record["name"] for record in findings.records if not record["faces"]]
    if faceless:
        told = f"no face was found in {len(faceless)} of {total} {what}, e.g. {faceless[0]}"
        console.print(told, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(faces)} faces in {total} {what}: {folder / PREDICTIONS}", soft_wrap=True, markup=False)
    file = folder / "failures.csv"
    if not write_failures(file, findings.failures, empty=False):
        return 0
    for failure in findings.failures[:SHOWN]:
        console.print(failure.reason, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(findings.failures)} could not be read: {file}", soft_wrap=True, markup=False)
    return 1


def _tracked(items: Iterable[Any]) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(items, "naming expressions", console=console, transient=True, disable=not console.is_terminal)


def _of_video(records: Sequence[dict[str, Any]]) -> bool:
    return bool(records) and "frame" in records[0]


def _table(records: Sequence[dict[str, Any]]) -> Table:
    """Return a row for each face of the first pictures; of the frames of a video, one for each expression."""
    rows = [(record, face) for record in records for face in record["faces"]]
    if _of_video(records):
        table = Table("expression", "faces", "share", "mean probability")
        for label, count in Counter(face["label"] for _, face in rows).most_common():
            mean = np.mean([face["probability"] for _, face in rows if face["label"] == label])
            table.add_row(escape(label), str(count), f"{100 * count / len(rows):.1f} %", f"{mean:.2f}")
        return table
    table = Table("picture", Column("face", no_wrap=True), "expression", "probability", "next")
    for record, face in rows[:SHOWN]:
        ranked = sorted(face["probabilities"].items(), key=lambda item: -item[1])
        second = f"{ranked[1][0]} {ranked[1][1]:.2f}" if len(ranked) > 1 else ""
        place = "{},{} – {},{}".format(*face["box"])
        table.add_row(
            escape(Path(record["name"]).name),
            place,
            escape(face["label"]),
            f"{face['probability']:.2f}",
            escape(second),
        )
    if len(rows) > SHOWN:
        table.add_row(f"… and {len(rows) - SHOWN} more", "", "", "", "")
    return table


def _within(picture: np.ndarray, square: Square, margin: float = 1.0) -> Box:
    """Return the part of a square, its side times `margin`, that lies in a picture: at least one pixel."""
    height, width = picture.shape[:2]
    half = margin * square.side / 2
    left, top = (
        min(max(0, round(middle - half)), size - 1) for middle, size in ((square.x, width), (square.y, height))
    )
    right, bottom = (round(square.x + half), round(square.y + half))
    return left, top, min(max(left + 1, right), width), min(max(top + 1, bottom), height)


def _explain(reader: ExpressionReader, seen: Seen, folder: Path, stem: str) -> None:
    for number, picture in enumerate(reader.explain(seen), start=1):
        _save(folder / EXPLAINED / f"{stem}-face{number}.jpg", picture)


def _refuse_own_output(files: Iterable[Path], folder: Path) -> None:
    """Raise ValueError for a file that lies where marked pictures are written: it would be written over."""
    written = [(folder / name).resolve() for name in (PICTURES, EXPLAINED)]
    for file in files:
        if any(file.resolve().is_relative_to(place) for place in written):
            raise ValueError(f"{file} is where a run's own pictures go; set another predict.output_dir")


def _free_names(files: Sequence[Path]) -> dict[str, str]:
    """Return a name for the picture of each file: its own without the ending, with a number where it is taken."""
    taken: Counter[str] = Counter()
    names = {}
    for file in files:
        stem = file.stem
        while taken[stem.casefold()]:  # some disks know no capital letters
            taken[file.stem.casefold()] += 1
            stem = f"{file.stem}-{taken[file.stem.casefold()]}"
        taken[stem.casefold()] += 1
        names[str(file)] = stem
    return names


def _save(path: Path, picture: np.ndarray) -> Path:
    """Write a picture as JPEG, or as PNG where it is too long for that; return where it is."""
    format = "JPEG" if max(picture.shape) <= _LONGEST_JPEG else "PNG"
    path = path.with_suffix(".jpg" if format == "JPEG" else ".png")
    with atomic_write(path) as handle:
        Image.fromarray(picture).save(handle, format=format, quality=92)
    return path
