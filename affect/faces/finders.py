"""Finding the face of the person a clip is about, and cutting it out of the frames.

A detector proposes boxes frame by frame; boxes that belong together over the frames are one
track, and the largest track that is plausible as a face is the person. A clip without such a
track has no face: an empty array, never a guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from affect.core.errors import MediaError
from affect.core.reading import reading
from affect.core.schema import check_name
from affect.faces.mediapipe_pipe import ask_mediapipe, has_mediapipe, mediapipe_version
from affect.features.arrays import parse_npy, read_bytes

CROP_SIZE = 224
MARGIN = 1.1  # side of the crop over the side of the box, which ends at brows and chin

_DETECTION_SIDE = 256  # longer side of the picture that is searched, in pixels
_BORDER = 0.2  # of its shorter side, put around it: the cascade misses faces that fill the picture
_SMALLEST_FACE = 0.12  # of the shorter side of the picture
_WHOLE_SEARCH_EVERY = 4  # frames; in those between, faces are looked for only where they were
_STEP = 0.5  # of a face's side: how far it is followed from one frame to the next
_GROWTH = 1.35  # how much larger or smaller it may be there
_LONGEST_GAP = 2  # frames without a detection that one track bridges
_SAME_SCENE = 0.6  # least correlation of two thumbnails of one scene


@dataclass(frozen=True)
class Box:
    """A square that holds a face, in pixels of the frame."""

    x: float
    """Centre."""
    y: float
    """Centre."""
    side: float
    score: float = 0.0
    """How sure the detector is, 0..1, where it says so."""
    tilt: float = 0.0
    """Degrees, against the clock on the screen, that the picture was turned by to find it."""

    def corners(self, image: np.ndarray, margin: float = 1.0) -> tuple[int, int, int, int]:
        """Return the part of the square, its side times `margin`, that lies in an image [H, W, …].

        Left, top, right and bottom in pixels, right and bottom the first ones outside; at least one pixel.
        """
        height, width = image.shape[:2]
        half = margin * self.side / 2
        left, top = (
            min(max(0, round(middle - half)), size - 1) for middle, size in ((self.x, width), (self.y, height))
        )
        right, bottom = (round(middle + half) for middle in (self.x, self.y))
        return left, top, min(max(left + 1, right), width), min(max(top + 1, bottom), height)


@dataclass(frozen=True)
class Faces:
    """The face crops of one person over the frames that were searched."""

    crops: np.ndarray
    """uint8 [K, S, S, 3] in the colour order of the frames; K is 0 where there is no face."""
    frames: list[int]
    """[K] positions among the frames that were searched, ascending."""
    boxes: list[Box]
    """[K] where the face is, without margin."""


class FaceFinder(Protocol):
    """Proposes the faces in RGB frames uint8 [T, H, W, 3] that follow each other in time."""

    name: str

    def boxes(self, frames: np.ndarray) -> list[list[Box]]:
        """Return the boxes of each frame in any order."""

    def is_sure(self, frame: np.ndarray, box: Box) -> bool:
        """Return whether something beside the proposal speaks for a face in a box of a frame."""


class OpenCvFinder:
    """Frontal faces by the boosted cascade that OpenCV ships (Viola & Jones, CVPR 2001; Lienhart's alt2 tree).

    The whole picture is searched every few frames and where a face is lost, in coarse steps; what
    that proposes and what was there in the frame before is then looked at closely, and counts
    only so. The cascade also fires on texture: a box is sure when there is an eye in it.
    """

    name = "opencv"

    def __init__(self) -> None:
        self._faces = load_cascade("haarcascade_frontalface_alt2.xml")
        self._eyes = load_cascade("haarcascade_eye.xml")

    def boxes(self, frames: np.ndarray) -> list[list[Box]]:
        """Return the boxes of each RGB frame in uint8 [T, H, W, 3]."""
        found: list[list[Box]] = []
        for i, frame in enumerate(frames):
            picture = _GrayPicture(frame)
            followed = [self._near(picture, box) for box in found[-1]] if i % _WHOLE_SEARCH_EVERY else []
            boxes = followed if followed and None not in followed else self._search(picture)
            found.append(boxes)
        return found

    def is_sure(self, frame: np.ndarray, box: Box) -> bool:
        """Return whether the eye cascade finds an eye in a box of a frame."""
        face, *_ = _GrayPicture(frame).part(box)
        face = cv2.resize(face, (120, 120))
        return len(self._eyes.detectMultiScale(face[18:72], scaleFactor=1.1, minNeighbors=2, minSize=(14, 14))) > 0

    def _search(self, picture: _GrayPicture) -> list[Box]:
        """Return the faces anywhere in a picture."""
        smallest = (picture.smallest_face, picture.smallest_face)
        squares = self._faces.detectMultiScale(picture.pixels, scaleFactor=1.15, minNeighbors=1, minSize=smallest)
        near = [self._near(picture, picture.box(*square)) for square in _squares(squares)]
        return [box for box in near if box is not None]

    def _near(self, picture: _GrayPicture, box: Box) -> Box | None:
        """Return the face nearest to a box among those of its place and size, None where there is none."""
        pixels, left, top = picture.part(box, _STEP)
        smallest, largest = (round(box.side * picture.scale * change) for change in (1 / _GROWTH, _GROWTH))
        squares = self._faces.detectMultiScale(
            pixels, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest), maxSize=(largest, largest)
        )
        found = [picture.box(left + x, top + y, side) for x, y, side in _squares(squares)]
        return min(found, key=lambda other: _distance(box, other), default=None)


class _GrayPicture:
    """A frame as the cascades see it, gray, small and with a border; boxes are in pixels of the frame."""

    def __init__(self, frame: np.ndarray) -> None:
        self.scale = min(1.0, _DETECTION_SIDE / max(frame.shape[:2]))
        gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        width, height = (max(1, round(side * self.scale)) for side in gray.shape[::-1])
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)
        self.smallest_face = max(20, round(_SMALLEST_FACE * min(gray.shape)))  # the cascade knows none below 20 pixels
        self._border = border = round(_BORDER * min(gray.shape))
        self.pixels = cv2.copyMakeBorder(gray, border, border, border, border, cv2.BORDER_REPLICATE)

    def box(self, left: int, top: int, side: int) -> Box:
        """Return a square of this picture as a box of the frame."""
        x, y = (left + side / 2 - self._border) / self.scale, (top + side / 2 - self._border) / self.scale
        return Box(x, y, side / self.scale)

    def part(self, box: Box, margin: float = 0.0) -> tuple[np.ndarray, int, int]:
        """Return the pixels of a box of the frame, with a margin in units of its side, and their left and top."""
        side = box.side * self.scale * (1 + 2 * margin)
        left, top = (max(0, round(middle * self.scale + self._border - side / 2)) for middle in (box.x, box.y))
        return self.pixels[top : top + round(side), left : left + round(side)], left, top


class MediapipeFinder:
    """Faces by MediaPipe's full-range detector (BlazeFace, Bazarevsky et al. 2019); turned heads too."""

    name = "mediapipe"

    def boxes(self, frames: np.ndarray) -> list[list[Box]]:
        """Return the boxes of each RGB frame in uint8 [T, H, W, 3]."""
        return [self._boxes(frame) for frame in frames]

    def is_sure(self, frame: np.ndarray, box: Box) -> bool:
        """Return whether the detector is surer than false alarms on real clips make it."""
        return box.score > 0.8

    def _boxes(self, frame: np.ndarray) -> list[Box]:
        height, width = frame.shape[:2]
        return [
            Box((left + w / 2) * width, (top + h / 2) * height, max(w * width, h * height), score)
            for left, top, w, h, score in ask_mediapipe("faces", frame)
        ]


def face_finder_name(name: str = "auto") -> str:
    """Return `opencv` or `mediapipe`; `auto` is mediapipe where there is an environment of it.

    Raises ValueError for another name, ModuleNotFoundError where mediapipe is asked for and absent.
    """
    if name == "auto":
        name = "mediapipe" if has_mediapipe() else "opencv"
    if name not in FINDERS:
        raise ValueError(
            f"face finder {name!r} is not known: expected auto, {' or '.join(FINDERS)}; correct the setting"
        )
    if name == "mediapipe":
        mediapipe_version()
    return name


def build_face_finder(name: str = "auto") -> FaceFinder:
    """Return the finder of a name, as `face_finder_name` understands it."""
    return FINDERS[face_finder_name(name)]()


FINDERS: dict[str, type[FaceFinder]] = {"opencv": OpenCvFinder, "mediapipe": MediapipeFinder}


def find_faces(frames: np.ndarray, finder: FaceFinder, size: int = CROP_SIZE) -> Faces:
    """Return the face of the main person in frames uint8 [T, H, W, 3] that follow each other in time.

    A track counts when it spans at least two detections (one where T is 1) of which a quarter
    are sure. The largest one by the sum of its sides wins; short gaps in it are bridged.
    """
    tracks = sorted(_tracks(finder.boxes(frames)), key=lambda track: -sum(box.side for box in track.values()))
    track = next((track for track in tracks if _is_plausible(track, frames, finder)), None)
    if track is None:
        return Faces(np.zeros((0, size, size, 3), np.uint8), [], [])
    track = _bridge_gaps(track, frames)
    crops = np.stack([_crop(frames[i], box, size) for i, box in track.items()])
    return Faces(crops, list(track), list(track.values()))


def face_array_places(face_root: Path, name: str) -> tuple[Path, Path]:
    """Return where the face array of a clip may be: `{name}.npy` or `{name}/{name}.npy`."""
    check_name(name)
    return face_root / f"{name}.npy", face_root / name / f"{name}.npy"


def load_face_array(face_root: str | Path, name: str) -> np.ndarray:
    """Return the face crops uint8 [T, H, W, 3] that another tool wrote for a clip, 112 pixels a side as a rule.

    Colours stay in the order of the file: the MER toolkit writes BGR, and published features were made from its
    arrays without a swap. Raises MediaError for a file that is missing, pickled or of another shape or type.
    """
    places = face_array_places(Path(face_root), name)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise MediaError(f"clip {name!r} has no face array: expected {places[0]} or {places[1]}; check the face root")
    expected = "uint8 faces [T, H, W, 3]"
    with reading(path, expected, "make it anew", MediaError):
        faces = parse_npy(read_bytes(path), str(path))
    if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[3] != 3 or 0 in faces.shape[1:]:
        found = f"{faces.dtype} {list(faces.shape)}"
        raise MediaError(f"{path}: expected uint8 faces [T, H, W, 3], found {found}; make it anew")
    return faces


def _squares(found: Sequence) -> list[tuple[int, int, int]]:
    """Return left, top and side of what a cascade found."""
    return [(left, top, side) for left, top, side, _ in np.reshape(found, (-1, 4)).tolist()]


def load_cascade(file: str) -> cv2.CascadeClassifier:
    """Return a cascade that OpenCV ships; raises MediaError where the installed version ships none."""
    cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / file))
    if cascade.empty():
        raise MediaError(f"{file} is not in the installed OpenCV; expected a version below 5, so install one")
    return cascade


def _tracks(boxes_of_frames: Sequence[list[Box]]) -> list[dict[int, Box]]:
    """Join boxes into tracks (frame -> box), nearest pairs first; a jump or a change of size begins a new one."""
    tracks: list[dict[int, Box]] = []
    for i, boxes in enumerate(boxes_of_frames):
        last = [track[max(track)] for track in tracks]
        pairs = sorted((_distance(last[t], box), t, b) for t in range(len(last)) for b, box in enumerate(boxes))
        used_tracks, used_boxes = set(), set()
        for distance, t, b in pairs:
            if distance < 1.5 and t not in used_tracks and b not in used_boxes:
                tracks[t][i] = boxes[b]
                used_tracks.add(t)
                used_boxes.add(b)
        tracks += [{i: box} for b, box in enumerate(boxes) if b not in used_boxes]
    return tracks


def _distance(a: Box, b: Box) -> float:
    """How far apart two boxes are in units of their size; infinite where one is twice the other."""
    larger, smaller = max(a.side, b.side), min(a.side, b.side)
    return math.hypot(a.x - b.x, a.y - b.y) / larger if larger < 2 * smaller else math.inf


def _is_plausible(track: dict[int, Box], frames: np.ndarray, finder: FaceFinder) -> bool:
    needed = math.ceil(len(track) / 4)
    sure = (i for i, box in track.items() if finder.is_sure(frames[i], box))
    # no more boxes are asked about than it takes
    return len(track) >= min(2, len(frames)) and len(list(itertools.islice(sure, needed))) == needed


def _bridge_gaps(track: dict[int, Box], frames: np.ndarray) -> dict[int, Box]:
    """Add boxes between two detections a few frames apart, where the scene is still the same (no cut away)."""
    bridged = dict(track)
    for start, end in itertools.pairwise(sorted(track)):
        if not 1 < end - start <= _LONGEST_GAP + 1:
            continue
        before = _thumbnail(frames[start])
        for i in range(start + 1, end):
            if np.mean(before * _thumbnail(frames[i])) > _SAME_SCENE:
                a, b, share = track[start], track[end], (i - start) / (end - start)
                x, y, side = (p + share * (q - p) for p, q in ((a.x, b.x), (a.y, b.y), (a.side, b.side)))
                bridged[i] = Box(x, y, side)
    return dict(sorted(bridged.items()))


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """Return a small gray picture of mean 0 and variance 1, so that a mean product is a correlation."""
    small = cv2.resize(frame, (24, 24), interpolation=cv2.INTER_AREA).mean(axis=2)
    return (small - small.mean()) / (small.std() + 1e-6)


def _crop(frame: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cut the box with its margin, moved and if need be shrunk to stay a square within the picture."""
    height, width = frame.shape[:2]
    side = max(1, min(round(box.side * MARGIN), height, width))
    left = min(max(round(box.x - side / 2), 0), width - side)
    top = min(max(round(box.y - side / 2), 0), height - side)
    face = frame[top : top + side, left : left + side]
    return cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
