"""A drawn face that action units move, for the demo's clips.

The units follow the Facial Action Coding System (Ekman, Friesen and Hager, 2002): each moves the brows, lids, cheeks,
lips, chin or jaw that its muscle moves. Everything is drawn on a canvas of twice the frame's size; halving it at the
end smooths the edges. The canvas holds colours that are already multiplied by their opacity, which is what OpenCV's
anti-aliased drawing on an empty four-channel picture leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 128
"""Width and height of a frame in pixels."""
FPS = 25
CANVAS = 2 * SIZE
DRAWN_UNITS = ("AU01", "AU02", "AU04", "AU05", "AU06", "AU07", "AU12", "AU15", "AU17", "AU20", "AU25", "AU26", "AU45")
"""Units that this face can show."""

_EYE_Y, _MOUTH_Y, _CENTRE_Y = 125.0, 185.0, 130.0  # on the canvas
_SKINS = ((255, 222, 200), (246, 204, 176), (232, 184, 150), (212, 160, 124), (184, 132, 98), (156, 108, 80))
_HAIRS = ((44, 34, 30), (78, 54, 38), (122, 84, 50), (204, 164, 108), (142, 74, 42), (150, 148, 146))
_IRISES = ((78, 52, 34), (96, 74, 44), (84, 116, 92), (88, 122, 156))
_SHIRTS = ((70, 96, 140), (150, 74, 70), (86, 120, 92), (110, 96, 130), (196, 180, 150), (60, 66, 78))
_SHADOW = np.array([0.6, 0.95, 0.95])  # how much of each colour a fold of the skin takes away
_S = np.linspace(-1, 1, 15)  # along a lip or a lid, from one corner to the other
_ARCH, _BEND = (1 - _S**2) ** 0.75, np.abs(_S) ** 1.9
_OUTWARDS = np.linspace(0, 1, 9)  # along a brow, from the nose
_WING = np.linspace(-1.2, 1.3, 7)  # along the wing of the nose
_COS, _SIN = np.cos(_ROUND := np.linspace(-np.pi, np.pi, 57)), np.sin(_ROUND)  # around the head, upper half first
_LOW, _TOP = np.clip(_SIN, 0, 1) ** 1.5, slice(29)
_ACROSS = np.linspace(1, -1, 37)  # over the forehead
_TEMPLE = np.abs(_ACROSS)
_HAIRLINES = (  # height of the hair over the forehead, by style
    66 + 5 * np.cos(_ACROSS * 3) + 46 * _TEMPLE**6,
    74 - 14 * np.exp(-(((_ACROSS + 0.45) / 0.28) ** 2)) + 38 * _TEMPLE**4,
    66 + 8 * _TEMPLE + 60 * _TEMPLE**5,
    72 + 3 * np.cos(_ACROSS * 16) + 44 * _TEMPLE**5,
)
_LENGTHS = [[61, 83, 0.85, 27.5, 0.92, 4.5, 9.5, 21, 0.85], [69, 91, 1.1, 31.5, 1.1, 7.5, 13, 25, 1.3]]
"""Least and most of a face's width and what follows it in `Face`."""


@dataclass(frozen=True)
class Face:
    """Looks of one person; lengths in canvas pixels, colours in RGB."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    shirt: np.ndarray
    style: int
    """0 short hair, 1 side parting, 2 long hair, 3 curls."""
    width: float
    height: float
    jaw: float
    """Below 1 a square jaw, above 1 a pointed one."""
    eye_gap: float
    eye_size: float
    brow: float
    nose: float
    mouth: float
    lips: float


def draw_person(rng: np.random.Generator) -> Face:
    """Draw the looks of a new person."""

    def colour(choices: tuple[tuple[int, int, int], ...]) -> np.ndarray:
        return np.clip(np.array(choices[rng.integers(len(choices))]) + rng.normal(0, 6) + rng.normal(0, 2, 3), 20, 255)

    skin = colour(_SKINS)
    first = slice(2 if skin.mean() < 150 else None)  # dark skin comes with dark hair and eyes
    hair, iris, shirt = map(colour, (_HAIRS[first], _IRISES[first], _SHIRTS))
    return Face(skin, hair, iris, shirt, int(rng.integers(4)), *rng.uniform(*_LENGTHS).tolist())


def film(face: Face, units: Mapping[str, np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Film `face` while it makes the movements in `units`, in a room drawn at random.

    `units` maps each of DRAWN_UNITS to its intensity 0..5, [T]; yields T frames [SIZE, SIZE, 3], uint8 RGB.
    """
    frames = len(units["AU12"])
    scale, offset = 0.5 * rng.uniform(0.95, 1.08), rng.normal(0, (2.5, 2.0))
    room = _room(face, offset, rng)
    light, behind = _light(face, rng), _behind(face)
    noise = rng.normal(128, rng.uniform(1.5, 3.5), (SIZE + 64, SIZE + 64, 3)).astype(np.uint8)
    sway = [_drift(frames, rng) for _ in range(4)]
    gaze = np.stack([_drift(frames, rng), 0.5 * _drift(frames, rng)], axis=1)
    for t in range(frames):
        head = _head(face, behind, {unit: float(units[unit][t]) for unit in DRAWN_UNITS}, gaze[t])
        head = cv2.multiply(head, light, scale=1 / 200)
        pose = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS * 0.8), 1.6 * sway[0][t], scale * (1 + 0.012 * sway[1][t]))
        pose[:, 2] += (SIZE - CANVAS) * np.array([0.5, 0.8]) + offset + (1.2 * sway[2][t], 0.8 * sway[3][t])
        head = cv2.warpAffine(head, pose, (SIZE, SIZE))
        see_through = cv2.cvtColor(255 - head[..., 3], cv2.COLOR_GRAY2RGB)
        frame = cv2.add(cv2.cvtColor(head, cv2.COLOR_RGBA2RGB), cv2.multiply(room, see_through, scale=1 / 255))
        x, y = rng.integers(0, 64, 2)
        yield cv2.addWeighted(frame, 1, noise[y : y + SIZE, x : x + SIZE], 1, -128)


def _drift(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Slow wandering about zero with a deviation near one, [frames]."""
    t = np.arange(frames) / FPS
    waves = [np.sin(2 * np.pi * (rate * t + rng.uniform())) for rate in rng.uniform((0.2, 0.5, 0.9), (0.4, 0.8, 1.4))]
    return np.average(waves, axis=0, weights=(3, 2, 1)) * 2


def _points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points in the sixteenths of a pixel that OpenCV draws with, [N, 2] int32."""
    return (16 * np.column_stack([x, y])).astype(np.int32)


def _fill(canvas: np.ndarray, x: np.ndarray, y: np.ndarray, colour: np.ndarray) -> None:
    cv2.fillPoly(canvas, [_points(x, y)], (*colour.tolist(), 255), cv2.LINE_AA, shift=4)


def _band(canvas: np.ndarray, x: np.ndarray, upper: np.ndarray, lower: np.ndarray, colour: np.ndarray) -> None:
    _fill(canvas, np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]]), colour)


def _stroke(canvas: np.ndarray, x: np.ndarray, y: np.ndarray, colour: np.ndarray, thickness: int = 2) -> None:
    cv2.polylines(canvas, [_points(x, y)], False, (*colour.tolist(), 255), thickness, cv2.LINE_AA, shift=4)


def _disc(canvas: np.ndarray, x: float, y: float, rx: float, ry: float, colour: np.ndarray) -> None:
    centre, axes = (int(16 * x), int(16 * y)), (int(16 * rx), int(16 * ry))
    cv2.ellipse(canvas, centre, axes, 0, 0, 360, (*colour.tolist(), 255), -1, cv2.LINE_AA, 4)


def _room(face: Face, offset: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Background and shoulders, [SIZE, SIZE, 3] uint8."""
    wall, other = rng.uniform(90, 215, (2, 3)) * 0.25 + rng.uniform(95, 200, (2, 1)) * 0.75
    blend = np.clip(np.add.outer(np.linspace(-0.3, 0.9, SIZE), np.linspace(0, rng.uniform(-0.6, 0.6), SIZE)), 0, 1)
    canvas = (wall + (other - wall) * blend[..., None]).astype(np.uint8)
    for _ in range(3):
        corner = rng.uniform(0, 0.8, 2) * SIZE
        x, y = corner[:, None] + np.array([[0, 35, 35, 0], [0, 0, 45, 45]]) * rng.uniform(0.4, 1)
        _fill(canvas, x, y, wall + rng.normal(0, 18) + rng.normal(0, 10, 3))
    canvas = cv2.GaussianBlur(canvas, (0, 0), 4)
    x = np.linspace(-66, 66, 41)
    y = offset[1] + 118 + 24 * (np.abs(x) / 66) ** 2.4
    _band(canvas, offset[0] + SIZE / 2 + x, y, np.full(41, 2.0 * SIZE), face.shirt)
    return canvas


def _light(face: Face, rng: np.random.Generator) -> np.ndarray:
    """Light and shade on the head, [CANVAS, CANVAS, 4] uint8, where 200 changes nothing."""
    y, x = np.mgrid[0:CANVAS:4, 0:CANVAS:4] + 1.5  # soft enough for a quarter of the points
    dx, dy = x - CANVAS / 2, y - _CENTRE_Y

    def spot(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return np.exp(-(((np.abs(dx) - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)

    normal = np.stack([dx / (face.width * 1.4), dy / (face.height * 1.7)])
    normal = np.concatenate([normal, np.sqrt(np.clip(1 - (normal**2).sum(0, keepdims=True), 0.05, 1))])
    source = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.5, -0.2), 1.0])
    lambert = np.clip(np.tensordot(source / np.linalg.norm(source), normal, 1), 0, 1)
    shade = rng.uniform(0.9, 1.06) * (0.52 + 0.52 * lambert)
    shade *= 1 - 0.22 * spot(face.eye_gap, _EYE_Y - 3, 20, 10)  # sockets
    shade *= 1 - 0.16 * spot(face.nose * 0.95, 148, 5, 17) + 0.10 * spot(0, 146, 6, 22)  # nose
    shade *= 1 - 0.16 * spot(0, 171, 12, 4) - 0.14 * spot(0, 202, 15, 4)  # under the nose and the lower lip
    shade *= 1 + 0.07 * spot(face.eye_gap + 3, 152, 17, 13) + 0.05 * spot(0, 88, 34, 15)  # cheeks, forehead
    shade *= 1 + 0.4 * spot(0, 50, 30, 6)  # gloss of the hair
    blush = spot(face.eye_gap + 8, 158, 16, 13)
    colour = np.dstack([shade * (1 + 0.03 * blush), shade * (1 - 0.07 * blush), shade * (1 - 0.06 * blush)])
    colour *= 1 + rng.normal(0, 0.015, 3)
    light = np.dstack([np.clip(200 * colour, 0, 255), np.full(x.shape, 200)]).astype(np.uint8)
    light = cv2.resize(light, (CANVAS, CANVAS), interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(light, _nose(face), scale=1 / 255)


def _nose(face: Face) -> np.ndarray:
    """Darkness of nostrils and wings, which never move, [CANVAS, CANVAS, 4] uint8, where 255 changes nothing."""
    canvas = np.full((CANVAS, CANVAS, 4), 255, np.uint8)
    for side in (-1, 1):
        _disc(canvas, CANVAS / 2 + side * face.nose * 0.5, 165, face.nose * 0.3, 2.4, np.array([128, 106, 102]))
        x, y = CANVAS / 2 + side * (face.nose - 4 + 5 * np.cos(_WING)), 160 + 6 * np.sin(_WING)
        _stroke(canvas, x, y, np.array([190, 184, 182]))
    return canvas


def _behind(face: Face) -> np.ndarray:
    """Hair at the back, neck and ears, which no action unit moves, [CANVAS, CANVAS, 4] uint8."""
    canvas = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    cx, w = CANVAS / 2, face.width
    if face.style == 2:
        x = cx + np.array([-w - 8, -w - 14, w + 14, w + 8])
        _fill(canvas, x, np.array([105.0, 222, 222, 105]), face.hair * 0.8)
        for side in (-1, 1):
            _disc(canvas, cx + side * w * 0.85, 218, 28, 16, face.hair * 0.8)
    if face.style == 3:
        for angle in np.linspace(-0.1, np.pi + 0.1, 13):
            _disc(canvas, cx + (w + 2) * np.cos(angle), 106 - 62 * np.sin(angle), 19, 19, face.hair * 0.85)
    neck = np.array([-0.56, -0.5, -0.6, 0.6, 0.5, 0.56]) * w
    _fill(canvas, cx + neck, np.array([165.0, 222, 239, 239, 222, 165]), face.skin * 0.84)
    _disc(canvas, cx, 238, 0.6 * w, 14, face.skin * 0.84)
    for side in (-1, 1):
        _disc(canvas, cx + side * (w + 1), _EYE_Y + 12, 9, 18, face.skin * 0.86)
        _disc(canvas, cx + side * (w + 2), _EYE_Y + 12, 4, 11, face.skin * 0.7)
    x, y = _outline(face, grow=6)
    _fill(canvas, x[_TOP], y[_TOP], face.hair * 0.85)
    return canvas


def _outline(face: Face, grow: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Outline of the head, moved outwards by `grow` pixels."""
    x = (face.width + grow) * np.sign(_COS) * np.abs(_COS) ** np.where(_SIN > 0, face.jaw * 0.95, 0.9)
    return CANVAS / 2 + x, _CENTRE_Y + (face.height + grow) * _SIN


def _hair(face: Face) -> tuple[np.ndarray, np.ndarray]:
    """Outline of the hair over the forehead."""
    x, y = _outline(face, grow=5)
    return np.r_[x[_TOP], CANVAS / 2 + (face.width + 4) * _ACROSS], np.r_[y[_TOP], _HAIRLINES[face.style]]


def _head(face: Face, behind: np.ndarray, au: Mapping[str, float], gaze: np.ndarray) -> np.ndarray:
    """The head without its light, [CANVAS, CANVAS, 4] uint8."""
    canvas = behind.copy()
    drop = 3.2 * au["AU26"] + 0.3 * au["AU25"]
    x, y = _outline(face)
    _fill(canvas, x, y + drop * _LOW, face.skin)
    _folds(canvas, face, au, drop)
    inner = canvas[62:230, 58:198]  # the folds of the skin are soft; its outline stays sharp
    inner[:] = cv2.GaussianBlur(inner, (5, 5), 0)
    _mouth(canvas, face, au, drop)
    for side in (-1, 1):
        _eye(canvas, face, side, au, gaze)
        _brow(canvas, face, side, au)
    _fill(canvas, *_hair(face), face.hair)
    return canvas


def _folds(canvas: np.ndarray, face: Face, au: Mapping[str, float], drop: float) -> None:
    """Wrinkles, furrows and bulges that the moving muscles leave in the skin."""
    cx, gap = CANVAS / 2, face.eye_gap

    def tone(darkness: float) -> np.ndarray:
        return np.minimum(face.skin * (1 - darkness * _SHADOW), 255)

    raised = (au["AU01"] + au["AU02"]) / 2
    for row in range(3) if raised > 0.5 else ():
        _stroke(canvas, cx + 34 * _S, 82 + 7 * row - 2 * raised - 3 * _ARCH, tone(0.05 * raised), 2)
    corner_x, corner_y = _corner(face, au)
    smile, cheek = au["AU12"], au["AU06"]
    for side in (-1, 1):
        if au["AU04"] > 0.3:
            x = cx + side * (6 - 0.6 * au["AU04"])
            _stroke(canvas, np.array([x, x - side, x]), np.array([104.0, 112, 119]), tone(0.07 * au["AU04"]), 2)
        x = cx + side * gap
        if cheek > 0.3:
            _stroke(canvas, x + 15 * _S, _EYE_Y + 12 + 5 * _ARCH - 0.9 * cheek, tone(0.05 * cheek), 2)
            _disc(canvas, cx + side * (gap + 7), 153 - 1.2 * cheek, 15, 9, tone(-0.02 * cheek))
            for turn in (-0.3, 0.3):
                reach = np.array([19.0, 24 + cheek])
                _stroke(canvas, x + side * reach, _EYE_Y + 2 + turn * (reach - 12), tone(0.05 * cheek), 2)
        if smile > 0.3:
            fold_x = np.array([face.nose + 4, face.nose + 12 + smile, corner_x + 7 + smile, corner_x + 7])
            fold_y = np.array([160 - smile, 168 - smile, _MOUTH_Y - 6, _MOUTH_Y + 4 + corner_y])
            _stroke(canvas, cx + side * fold_x, fold_y, tone(0.06 * smile), 3)
        if au["AU15"] > 0.3:
            x, y = cx + side * (corner_x + 3), _MOUTH_Y + corner_y
            _stroke(canvas, np.array([x, x + 3 * side]), np.array([y + 4, y + 15]), tone(0.06 * au["AU15"]), 3)
    if au["AU17"] > 0.3:
        y = 207 + drop - 0.8 * au["AU17"]
        _stroke(canvas, cx + 15 * _S, y + 5 - 6 * _ARCH, tone(0.06 * au["AU17"]), 3)
        for x in (-7, 0, 7):
            _disc(canvas, cx + x, y + 9 - abs(x) / 3, 2, 1.5, tone(0.05 * au["AU17"]))


def _corner(face: Face, au: Mapping[str, float]) -> tuple[float, float]:
    """Distance of the lip corners from the middle and below the resting line of the mouth."""
    x = face.mouth + 1.9 * au["AU12"] + 0.8 * au["AU20"] - 0.3 * au["AU17"] - 1.3 * au["AU26"]
    return max(x, 12), -2.6 * au["AU12"] + 2.4 * au["AU15"]


def _mouth(canvas: np.ndarray, face: Face, au: Mapping[str, float], drop: float) -> None:
    cx, (half, corner) = CANVAS / 2, _corner(face, au)
    lift = -1.1 * au["AU17"] - 0.5 * au["AU12"]
    parted = 0.7 * au["AU25"] + 0.4 * au["AU26"]
    x = cx + half * _S
    line = _MOUTH_Y + 0.25 * drop + lift + (corner - lift) * _BEND
    upper = line - parted * _ARCH
    lower = line + (parted + 0.9 * drop) * _ARCH
    full = face.lips * (1 - 0.06 * au["AU12"])
    bow = 1 - 0.28 * np.exp(-((_S / 0.16) ** 2))
    above = upper - 5.5 * full * bow * (1 - _S**2)
    below = lower + (7.0 * full - 0.4 * au["AU17"]) * (1 - _S**2) ** 0.8
    lip = np.clip(face.skin * np.array([0.86, 0.56, 0.56]), 0, 255)
    if (lower - upper).max() > 1.5:
        _band(canvas, x, upper, lower, np.array([74, 26, 28]))
        tongue = np.maximum(upper, lower - 0.35 * drop * _ARCH)
        _band(canvas, x, tongue, lower, np.array([176, 84, 84]))
        teeth = np.minimum(lower, upper + (2 + 0.5 * au["AU12"]) * _ARCH * (np.abs(_S) < 0.9))
        _band(canvas, x, upper, teeth, np.array([240, 236, 228]))
    _band(canvas, x, above, upper, lip * 0.92)
    _band(canvas, x, lower, below, lip)
    shine = 0.35 * lower + 0.65 * below
    _stroke(canvas, x[4:11], shine[4:11] - 1.5, lip * 0.6 + 102 * 0.8, 2)
    _stroke(canvas, x, upper, lip * 0.55, 2)
    _stroke(canvas, x, lower, lip * 0.6, 1)


def _eye(canvas: np.ndarray, face: Face, side: int, au: Mapping[str, float], gaze: np.ndarray) -> None:
    cx, cy, size = CANVAS / 2 + side * face.eye_gap, _EYE_Y, face.eye_size
    shut = np.clip(au["AU45"] / 1.8, 0, 1)
    low = size * (5.0 - 0.55 * au["AU06"] - 0.3 * au["AU07"])
    high = size * (7.2 + 1.15 * au["AU05"] - 0.35 * au["AU07"] - 0.3 * au["AU04"])
    high = high * (1 - shut) - 0.7 * low * shut
    x = cx + 14.5 * size * _S
    tilt = -1.2 * side * _S
    upper, lower = cy + tilt - high * _ARCH, cy + tilt + low * _ARCH
    _band(canvas, x, upper, lower, np.array([238, 236, 232]))
    if high > 0:
        iris_x, iris_y = cx + 1.6 * gaze[0], cy - 0.8 + 1.2 * gaze[1]
        _disc(canvas, iris_x, iris_y, 7.4 * size, 7.4 * size, face.iris * 0.55)
        _disc(canvas, iris_x, iris_y, 6.2 * size, 6.2 * size, face.iris)
        _disc(canvas, iris_x, iris_y, 3.3 * size, 3.3 * size, np.array([18, 14, 14]))
        _disc(canvas, iris_x - 2.2, iris_y - 2.6, 1.8, 1.8, np.array([255, 255, 255]))
        _band(canvas, x, np.minimum(upper, cy - 14 * _ARCH), upper, face.skin)  # the lids hide the rest of the iris
        _band(canvas, x, lower, np.maximum(lower, cy + 12 * _ARCH), face.skin)
    _stroke(canvas, x, lower, face.skin * np.array([0.7, 0.58, 0.56]), 1)
    _stroke(canvas, x, upper, face.skin * np.array([0.3, 0.24, 0.24]), 4)
    crease = upper - 4.5 + 1.5 * np.abs(_S)
    _stroke(canvas, x[1:-1], np.minimum(crease, cy + tilt - 4.5 * _ARCH)[1:-1], face.skin * 0.72, 2)


def _brow(canvas: np.ndarray, face: Face, side: int, au: Mapping[str, float]) -> None:
    inner = -2.6 * au["AU01"] + 1.7 * au["AU04"] + 0.8 * au["AU01"] * (au["AU04"] > 1)
    outer = -2.4 * au["AU02"] + 0.5 * au["AU04"] + 0.5 * au["AU06"]
    middle = 0.5 * (inner + outer) - 0.5 * au["AU02"] + 0.6 * au["AU04"]
    x = CANVAS / 2 + side * (face.eye_gap - 17 - 1.4 * au["AU04"] + (37 + 1.2 * au["AU04"]) * _OUTWARDS)
    rest = _EYE_Y - 19 - 5 * np.sin(np.pi * _OUTWARDS**0.8) + 2 * _OUTWARDS
    y = rest + inner * (1 - _OUTWARDS) ** 2 + middle * 2 * _OUTWARDS * (1 - _OUTWARDS) + outer * _OUTWARDS**2
    thick = face.brow * np.clip(1.15 - _OUTWARDS, 0.12, 1) ** 0.6 * np.clip(0.55 + 3 * _OUTWARDS, 0, 1) / 2
    _band(canvas, x, y - thick, y + thick, face.hair * 0.6)
