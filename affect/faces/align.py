"""Faces in still pictures: all of them, and the main one turned upright and cut out.

    finder = build_face_finder("auto")                       affect.faces.finders
    for box in find_all_faces(image, finder): …              every face of a picture, the largest first
    crop = straighten_face(image, box)                       one of them, upright [224, 224, 3]
    crop = straighten(image, finder)                         the largest one, upright; None where there is no face

A face is turned by the line through its eyes; where those are not found it is cut out as it stands.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import cv2
import numpy as np

from affect.faces.finders import CROP_SIZE, Box, FaceFinder, load_cascade

MARGIN = 1.25  # side of the crop over the side of the box: chin and forehead stay in it when the face is turned
STEEPEST = 35.0  # degrees; what steeper lines join is no pair of eyes

_TILTS = (0.0, 20.0, -20.0)  # degrees by which a picture is turned until a face is found: cascades know upright ones
_SMALL = 384  # pixels of the longer side of a picture that is turned; finders look at no more of it
_EYE_SEARCH = 128  # pixels a side that a face has when its eyes are looked for
_EYES = (0.5, 0.38)  # where the middle between the eyes is in a box, as a rule, from left and top
_EYES_APART = (0.25, 0.62)  # of the box's side
_TILES = 2  # a large picture is searched whole and in tiles of 1 / _TILES of its sides, for small faces
_LARGE = 900  # pixels of the shorter side


def find_all_faces(image: np.ndarray, finder: FaceFinder) -> list[Box]:
    """Return the faces in a picture uint8 RGB [H, W, 3], the largest first.

    As the finders see faces of an eighth of a picture's shorter side or more, pictures of 900 pixels and
    more are searched in parts as well, which halves that.
    """
    found = _search(image, finder)
    height, width = image.shape[:2]
    if min(height, width) >= _LARGE:
        tops, lefts = (np.linspace(0, size - size // _TILES, 2 * _TILES - 1).astype(int) for size in (height, width))
        for top, left in itertools.product(tops.tolist(), lefts.tolist()):
            tile = image[top : top + height // _TILES, left : left + width // _TILES]
            boxes = (box for box in finder.boxes(tile[None])[0] if finder.is_sure(tile, box))
            found += [replace(box, x=box.x + left, y=box.y + top) for box in boxes]
    faces: list[Box] = []
    for box in sorted(found, key=lambda box: -box.side):
        if not any(_overlap(box, face) for face in faces):
            faces.append(box)
    return faces


def straighten(image: np.ndarray, finder: FaceFinder, size: int = CROP_SIZE) -> np.ndarray | None:
    """Return the largest face of a picture uint8 RGB [H, W, 3], upright [size, size, 3]; None where there is none."""
    boxes = _search(image, finder) or find_all_faces(image, finder)
    if not boxes:
        return None
    box = max(boxes, key=lambda box: box.side)
    return straighten_face(image, box, size)


def straighten_face(image: np.ndarray, box: Box, size: int = CROP_SIZE) -> np.ndarray:
    """Return the face in a box of a picture uint8 RGB [H, W, 3], its eyes level, as a square [size, size, 3].

    The box's tilt turns the face about upright before its eyes are looked for.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    place = _placing(box, _EYE_SEARCH, (0.5, 0.5))
    eyes = _find_eyes(cv2.warpAffine(gray, place, (_EYE_SEARCH, _EYE_SEARCH), borderMode=cv2.BORDER_REPLICATE))
    if eyes is None:
        return _cut(image, box, size, (0.5, 0.5))
    (left_x, left_y), (right_x, right_y) = eyes
    tilt = box.tilt + math.degrees(math.atan2(right_y - left_y, right_x - left_x))
    x, y = cv2.invertAffineTransform(place) @ ((left_x + right_x) / 2, (left_y + right_y) / 2, 1)
    return _cut(image, replace(box, x=x, y=y, tilt=tilt), size, (_EYES[0], 0.5 + (_EYES[1] - 0.5) / MARGIN))


def _search(image: np.ndarray, finder: FaceFinder) -> list[Box]:
    """Return the sure faces in a picture as it is, else in the picture turned."""
    height, width = image.shape[:2]
    shrink = min(1.0, _SMALL / max(height, width))
    if shrink * min(height, width) < 1:  # a line; OpenCV refuses to shrink it to nothing
        return []
    small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    centre = (small.shape[1] / 2, small.shape[0] / 2)
    for tilt in _TILTS:
        turn = cv2.getRotationMatrix2D(centre, tilt, 1)
        turned = cv2.warpAffine(small, turn, small.shape[1::-1], borderMode=cv2.BORDER_REPLICATE) if tilt else small
        sure = [box for box in finder.boxes(turned[None])[0] if finder.is_sure(turned, box)]
        if sure:
            back = cv2.invertAffineTransform(turn)
            places = [back @ (box.x, box.y, 1) / shrink for box in sure]
            pairs = zip(places, sure, strict=True)
            return [Box(x, y, box.side / shrink, box.score, tilt) for (x, y), box in pairs]
    return []


def _cut(image: np.ndarray, box: Box, size: int, at: tuple[float, float]) -> np.ndarray:
    """Return a square [size, size, 3] around a box with its margin, turned by its tilt, the box's centre `at`."""
    box = replace(box, side=box.side * MARGIN)
    scale = size / box.side
    if scale < 0.5:  # a warp samples few of the pixels of a picture that it shrinks much
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        box = replace(box, x=box.x * scale, y=box.y * scale, side=size)
    place = _placing(box, size, at)
    return cv2.warpAffine(image, place, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _placing(box: Box, size: int, at: tuple[float, float]) -> np.ndarray:
    """Return the map [2, 3] that turns a picture about a box's centre, scales its side to `size` and puts it `at`."""
    place = cv2.getRotationMatrix2D((box.x, box.y), box.tilt, size / box.side)
    place[:, 2] += (at[0] * size - box.x, at[1] * size - box.y)
    return place


def _find_eyes(face: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return the centres of the eyes in a gray face [S, S], the left one of the picture first.

    Of all pairs that could be eyes, the one that lies most as eyes do; None where there is none.
    """
    side = face.shape[0]
    found = _eye_cascade().detectMultiScale(
        face, scaleFactor=1.1, minNeighbors=2, minSize=(side // 8, side // 8), maxSize=(side * 2 // 5, side * 2 // 5)
    )
    spots = [(x + width / 2, y + height / 2, width) for x, y, width, height in np.reshape(found, (-1, 4)).tolist()]
    pairs = []
    for left, right in itertools.permutations(spots, 2):
        across, down = right[0] - left[0], right[1] - left[1]
        apart = math.hypot(across, down) / side
        if across <= 0 or abs(math.degrees(math.atan2(down, across))) > STEEPEST:
            continue
        if not _EYES_APART[0] < apart < _EYES_APART[1] or max(left[2], right[2]) > 1.6 * min(left[2], right[2]):
            continue
        off_centre = [abs((left[i] + right[i]) / 2 / side - _EYES[i]) for i in (0, 1)]
        cost = 2 * sum(off_centre) + abs(apart - 0.4) + 2 * abs(left[2] - right[2]) / side
        pairs.append((cost, left[:2], right[:2]))
    return min(pairs)[1:] if pairs else None


@cache
def _eye_cascade() -> cv2.CascadeClassifier:
    return load_cascade("haarcascade_eye.xml")


def _overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes are about one face: the centre of the smaller one lies in the other."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) < max(a.side, b.side) / 2
