"""Faces marked in pictures, and pictures as a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from affect.core.files import atomic_write
from affect.core.plots import font_file
from affect.expressions.predict import FacePrediction

SMALLEST = 200
"""Pixels of the shorter side that a picture is enlarged to, so that words fit on it."""
LONGEST = 4000
"""Pixels of the longer side that no picture is enlarged beyond."""
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#1796aa")
_UNSURE = "#6e6e6e"
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


def _colour(face: FacePrediction) -> str:
    first = face.label.split(", ")[0]
    names = list(face.probabilities)
    return _COLOURS[names.index(first) % len(_COLOURS)] if first in names else _UNSURE


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), size)


@contextmanager
def write_video(path: Path) -> Iterator[Callable[[float, np.ndarray], None]]:
    """Write pictures with their times as H.264; the file has its name only when the block ends well.

    Gives what adds a picture uint8 RGB [H, W, 3] shown from a time (s) on; later ones get the size of the first.
    """
    last = -1
    with atomic_write(path) as handle, av.open(handle, "w", format=path.suffix[1:]) as container:
        stream = container.add_stream("libx264", rate=25, pix_fmt="yuv420p")  # nominal: frames have times
        stream.codec_context.time_base = Fraction(1, _CLOCK)

        def write(time: float, picture: np.ndarray) -> None:
            nonlocal last
            picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
            if last < 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame = frame.reformat(stream.width, stream.height)
            frame.pts = last = max(round(time * _CLOCK), last + 1)
            frame.time_base = Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode())
