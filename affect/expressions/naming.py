"""Expressions of whole runs: every image, or every so many frames of a video, named, written down and marked.

A run's folder holds predictions.jsonl (a line an image or frame), pictures/ (the same with the faces marked; one video
for a video), explained/ (heat maps, if asked for) and failures.csv.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from affect.core.errors import MediaError
from affect.core.failures import Failure
from affect.core.files import atomic_write
from affect.expressions.drawing import annotate, enlarge, write_video
from affect.expressions.image_files import ImageError, list_images, read_image
from affect.expressions.image_set import tracked
from affect.expressions.reader import ExpressionReader, NamedImage

PREDICTIONS, MARKED, EXPLAINED = "predictions.jsonl", "pictures", "explained"
"""What a run writes into its folder."""
_LONGEST_JPEG = 65_500  # pixels of a side


@dataclass
class Findings:
    """What became of a run."""

    records: list[dict[str, Any]] = field(default_factory=list)
    """As in predictions.jsonl."""
    failures: list[Failure] = field(default_factory=list)

    def add(self, record: dict[str, Any], lines: BinaryIO) -> None:
        """Keep a record and write it as a line of JSON."""
        self.records.append(record)
        # a name that is no UTF-8 is escaped, as JSON escapes it anyway
        lines.write(json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def name_images(reader: ExpressionReader, paths: Sequence[Path], folder: Path, explain: bool = False) -> Findings:
    """Name the expressions in images, files and folders of them, and draw what spoke for them if `explain`.

    One that cannot be read is among the failures, one without a face has none in its record.
    """
    files, failures = list_images(paths)
    _refuse_own_output(files, folder)
    findings, names = Findings(failures=failures), _free_names(files)
    with atomic_write(folder / PREDICTIONS) as lines:
        for named in reader.read(_readable(files, findings.failures)):
            stem = names[named.name]
            image, factor = enlarge(named.image)
            place = _save(folder / MARKED / f"{stem}.jpg", annotate(image, named.faces, factor))
            findings.add({**named.as_json(), "picture": str(place.relative_to(folder))}, lines)
            if explain:
                _explain(reader, named, folder, stem)
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
    named, due = None, 0.0
    with atomic_write(folder / PREDICTIONS) as lines, write_video(folder / MARKED / f"{stem}.mp4") as write:
        with suppress(KeyboardInterrupt) if live else nullcontext():
            for index, (moment, frame) in enumerate(tracked(frames, "naming expressions")):
                if moment + 1e-6 >= due:
                    due = (math.floor(moment * rate + 1e-6) + 1) / rate
                    (named,) = reader.read([(name, frame)])
                    findings.add({**named.as_json(), "frame": index, "time": round(moment, 3)}, lines)
                    if explain:
                        _explain(reader, named, folder, f"{stem}-{index:06d}")
                write(moment, annotate(frame, named.faces))
        if named is None:
            raise MediaError(f"{name}: no frame can be decoded; expected a video, so fetch it again")
    return findings


def _readable(files: Sequence[Path], failures: list[Failure]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the images that can be read; add the others to `failures`."""
    for file in tracked(files, "naming expressions"):
        try:
            yield str(file), read_image(file)
        except ImageError as error:
            failures.append(Failure(str(file), "read", str(error)))


def _explain(reader: ExpressionReader, named: NamedImage, folder: Path, stem: str) -> None:
    for number, heat in enumerate(reader.explain(named), start=1):
        _save(folder / EXPLAINED / f"{stem}-face{number}.jpg", heat)


def _refuse_own_output(files: Iterable[Path], folder: Path) -> None:
    """Raise ValueError for a file that lies where marked images are written: it would be written over."""
    written = [(folder / name).resolve() for name in (MARKED, EXPLAINED)]
    for file in files:
        if any(file.resolve().is_relative_to(place) for place in written):
            raise ValueError(f"{file} is where a run's own pictures go; set another predict.output_dir")


def _free_names(files: Sequence[Path]) -> dict[str, str]:
    """Return a name for the marked image of each file: its own without the ending, with a number where it is taken."""
    taken: set[str] = set()  # in small letters, for some disks know no capital ones
    names = {}
    for file in files:
        numbered = (f"{file.stem}-{number}" for number in itertools.count(2))
        stem = next(name for name in itertools.chain([file.stem], numbered) if name.casefold() not in taken)
        taken.add(stem.casefold())
        names[str(file)] = stem
    return names


def _save(path: Path, image: np.ndarray) -> Path:
    """Write an image as JPEG, or as PNG where it is too long for that; return where it is."""
    path = path if max(image.shape) <= _LONGEST_JPEG else path.with_suffix(".png")
    with atomic_write(path) as handle:
        Image.fromarray(image).save(handle, format="PNG" if path.suffix == ".png" else "JPEG", quality=92)
    return path
