"""Faces marked in pictures, and pictures as a video."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from affect.core.plots import font_file
from affect.expressions.predict import FacePrediction

SMALLEST = 200
"""Pixels of the shorter side that a picture is enlarged to, so that words fit on it."""
LONGEST = 4000
"""Pixels of the longer side that no picture is enlarged beyond."""
_COLOURS = (
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (148, 103, 189),
    (255, 127, 14),
    (140, 86, 75),
    (23, 150, 170),
)
_UNSURE = (110, 110, 110)
_CLOCK = 90_000  # ticks a second of the videos that are written: frames keep their own times


def annotate(picture: np.ndarray, faces: Sequence[FacePrediction], factor: int = 1) -> np.ndarray:
    """Return a picture uint8 RGB [H, W, 3] with the box (times `factor`), label and probability of every face.

    Each class has its colour; gray with a question mark is a face whose probabilities are near uniform.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    side = min(image.size)
    font, width = _font(max(12, side // 36)), max(2, side // 220)
    for face in faces:
        colour = _UNSURE if face.near_uniform else _colour(face)
        x, y, right, bottom = (factor * place for place in face.corners)
        draw.rectangle((x, y, right - 1, bottom - 1), outline=colour, width=width)
        words = f"{face.label} {face.probability:.2f}{' ?' if face.near_uniform else ''}"
        _, _, long, high = draw.textbbox((0, 0), words, font=font)
        left, top = max(0, min(x, image.width - long - 6)), y - high - 4 if y >= high + 4 else y
        draw.rectangle((left, top, left + long + 6, top + high + 4), fill=colour)
        draw.text((left + 3, top + 1), words, font=font, fill="white")
    return np.asarray(image)


def enlarge(picture: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a picture with words' room, and by what whole number it was enlarged (1: not at all)."""
    sides = picture.shape[:2]
    factor = max(1, min(-(-SMALLEST // min(sides)), LONGEST // max(sides)))
    if factor == 1:
        return picture, 1
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)), factor


def _colour(face: FacePrediction) -> tuple[int, int, int]:
    first = face.label.split(", ")[0]
    names = list(face.probabilities)
    return _COLOURS[names.index(first) % len(_COLOURS)] if first in names else _UNSURE


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), size)


class VideoWriter:
    """Writes pictures with their times as H.264; the file has its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self._part = path, path.with_name(f".{path.stem}.part{path.suffix}")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, time: float, picture: np.ndarray) -> None:
        """Add a picture uint8 RGB [H, W, 3] that is shown from `time` (s) on; later ones get the size of the first."""
        picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._open(*picture.shape[:2])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
        frame = frame.reformat(self._stream.width, self._stream.height)
        frame.pts = self._last = max(round(time * _CLOCK), self._last + 1)
        frame.time_base = Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if self._container is None:
            return
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w")
        self._stream = self._container.add_stream("libx264", rate=25, pix_fmt="yuv420p")  # nominal: frames have times
        self._stream.height, self._stream.width = height, width
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)
