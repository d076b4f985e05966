"""Action units without OpenFace: how far the 478 points of MediaPipe's face mesh have moved from rest.

Mesh: Grishchenko et al., "Attention Mesh: High-fidelity Face Mesh Prediction in Real-time" (2020). Which
points an action unit moves, and where to, follows FACS (Ekman, Friesen & Hager, 2002). How well each unit
agrees with OpenFace, and on how little data that is known, is in docs/au_backends.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from affect.core.au_json import AuAnalysis
from affect.core.errors import MediaError
from affect.faces.mediapipe_pipe import ask_mediapipe, mediapipe_version
from extractors.au.openface import analyse_table, frame_table
from extractors.media.decode import all_frames

TOOL = "mediapipe face mesh (landmark geometry)"
NUM_POINTS = 478

LEAST_R = 0.5
"""A unit is reported from this Pearson r with OpenFace on, also with the person held out and on other clips."""

REPORTED = {"AU06": 0.78, "AU10": 0.81, "AU12": 0.89, "AU14": 0.69, "AU25": 0.87, "AU45": 0.81}
"""Action unit -> its r, the smaller of two sets of clips; the other units are measured for comparison only."""

REST_PERCENTILE = 25
"""A unit is at rest at this percentile of its movement over the clip: the quarter from which OpenFace's FaceAnalyser
first counted (later versions have one such cut a unit). Why a clip is its own measure: Baltrusaitis, Mahmoud &
Robinson, "Cross-dataset learning and person-specific normalisation for automatic Action Unit detection" (FG 2015)."""

# points of bone and gristle, which no expression moves far: eye corners, bridge and tip of the nose
_STABLE = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4)
_OUTER_EYE_CORNERS = (33, 263)
_EYE_CORNERS = (33, 133, 362, 263)
_FOREHEAD, _NOSE_BASE = 10, 2
_ROUNDS = 3  # of fitting frames to their mean; the third moves no point by more than 1e-5

_INNER_BROWS, _OUTER_BROWS = (107, 66, 336, 296), (105, 63, 334, 293)
_UPPER_LIDS, _LOWER_LIDS = (158, 159, 160, 385, 386, 387), (144, 145, 153, 373, 374, 380)
_CHEEKS = (50, 101, 117, 118, 205, 280, 330, 346, 347, 425)
_UPPER_LIP_SIDES = (39, 40, 269, 270)
_MOUTH_CORNERS = (61, 291)
_LOWER_LIP = (14, 17)
_CHIN = (152, 199)


@dataclass(frozen=True)
class Movement:
    """What an action unit does to the points, as a number that grows with it."""

    size: Callable[[np.ndarray], np.ndarray]
    """Face [T, 478, 3] as `face_frame` gives it -> size of the movement [T] in distances between the eyes."""
    gain: float
    """Intensity (0..5) for a movement of one such distance."""
    rest: float = REST_PERCENTILE
    """Percentile of the size over the clip that counts as rest."""


def _up(face: np.ndarray, points: tuple[int, ...]) -> np.ndarray:
    return -face[:, points, 1].mean(axis=1)


def _back(face: np.ndarray, points: tuple[int, ...]) -> np.ndarray:
    return face[:, points, 2].mean(axis=1)


def _apart(face: np.ndarray, a: int, b: int) -> np.ndarray:
    return np.linalg.norm(face[:, a] - face[:, b], axis=1)


def _lip_height(face: np.ndarray) -> np.ndarray:
    return _apart(face, 0, 13) + _apart(face, 14, 17)


MOVEMENTS: dict[str, Movement] = {
    "AU01": Movement(lambda f: _up(f, _INNER_BROWS), 40),
    "AU02": Movement(lambda f: _up(f, _OUTER_BROWS), 21),
    "AU04": Movement(lambda f: -_up(f, _INNER_BROWS) - _apart(f, 107, 336), 10),
    # both ways from the middle: at the lower end of this movement the eyes blink
    "AU05": Movement(lambda f: _up(f, _UPPER_LIDS), 17, rest=50),
    "AU06": Movement(lambda f: _up(f, _CHEEKS), 57),
    "AU07": Movement(lambda f: _up(f, _LOWER_LIDS), 116),
    "AU09": Movement(lambda f: -_apart(f, 168, 129) - _apart(f, 168, 358), 2.2),
    "AU10": Movement(lambda f: _up(f, _UPPER_LIP_SIDES), 28),
    "AU12": Movement(lambda f: _apart(f, *_MOUTH_CORNERS) + _up(f, _MOUTH_CORNERS), 12),
    "AU14": Movement(lambda f: _back(f, _MOUTH_CORNERS), 20),
    "AU15": Movement(lambda f: -_up(f, _MOUTH_CORNERS), 3.6),
    # the chin lifts the middle of the lower lip, the corners stay
    "AU17": Movement(lambda f: _up(f, _LOWER_LIP) - _up(f, _MOUTH_CORNERS), 13),
    "AU20": Movement(lambda f: _apart(f, *_MOUTH_CORNERS) - _up(f, _MOUTH_CORNERS), 0.9),
    "AU23": Movement(lambda f: -_lip_height(f) - _apart(f, *_MOUTH_CORNERS), 2.7),
    "AU25": Movement(lambda f: _apart(f, 13, 14), 12),
    "AU26": Movement(lambda f: -_up(f, _CHIN), 20),
    "AU45": Movement(lambda f: _up(f, _LOWER_LIDS) - _up(f, _UPPER_LIDS), 22),
}
"""Action unit -> how it is measured: anatomy chose the points, one gain a unit was fitted."""


# -- geometry ----------------------------------------------------------------------------------


def face_frame(landmarks: np.ndarray) -> np.ndarray:
    """Return landmarks [T, 478, 3] freed of the head's movement: x to the picture's right, y down, z back.

    Every frame is turned, moved and scaled to fit the clip's mean face at points that expressions hardly move
    (generalised Procrustes analysis; Gower, 1975). Unit: the mean distance between the outer eye corners.
    Raises ValueError for another shape, for no frame or for numbers that are not finite.
    """
    points = np.asarray(landmarks, dtype=float)
    if points.ndim != 3 or points.shape[1:] != (NUM_POINTS, 3) or not len(points) or not np.isfinite(points).all():
        raise ValueError(
            f"landmarks must be finite and of shape [T, {NUM_POINTS}, 3] with a frame at least, found "
            f"{list(points.shape)}; leave frames without a face out"
        )
    stable = points[:, _STABLE]
    centre = stable.mean(axis=1, keepdims=True)
    stable, points = stable - centre, points - centre
    mean = stable[0]
    for _ in range(_ROUNDS):
        mean = mean / np.linalg.norm(mean)
        turn = _turns_and_scales(stable, mean)
        mean = (stable @ turn).mean(axis=0)
    return _upright(points @ turn)


def _turns_and_scales(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return matrices [T, 3, 3] that turn and scale centred points [T, N, 3] to fit the target [N, 3] best.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (PAMI 1991).
    """
    left, strength, right = np.linalg.svd(points.transpose(0, 2, 1) @ target)
    strength[:, 2] *= np.sign(np.linalg.det(left @ right))  # a turn, never a mirror image
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    scale = strength.sum(axis=1) / (points**2).sum(axis=(1, 2))
    return scale[:, None, None] * (left @ right)


def _upright(points: np.ndarray) -> np.ndarray:
    """Turn aligned points [T, 478, 3] so that the mean face looks straight out of the picture; scale by its eyes."""
    mean = points.mean(axis=0)
    across = mean[_OUTER_EYE_CORNERS[1]] - mean[_OUTER_EYE_CORNERS[0]]
    unit = np.linalg.norm(across)
    x = across / unit
    down = mean[_NOSE_BASE] - mean[_FOREHEAD]
    down = down - x * (x @ down)
    y = down / np.linalg.norm(down)
    origin = mean[list(_EYE_CORNERS)].mean(axis=0)
    return (points - origin) @ np.stack([x, y, np.cross(x, y)], axis=1) / unit


def intensities(landmarks: np.ndarray) -> pd.DataFrame:
    """Return the intensity (0..5) of every unit of `MOVEMENTS` in each frame of landmarks [T, 478, 3].

    Rest is what the face did in the lower part of this clip (`REST_PERCENTILE`): a clip of one frame measures
    nothing, and an expression that is held all the time passes for the person's face. Raises as `face_frame`.
    """
    face = face_frame(landmarks)
    columns = {}
    for unit, movement in MOVEMENTS.items():
        size = movement.size(face)
        columns[f"{unit}_r"] = np.clip(movement.gain * (size - np.percentile(size, movement.rest)), 0, 5)
    return pd.DataFrame(columns)


def table_of(landmarks: np.ndarray, timestamps: np.ndarray) -> pd.DataFrame:
    """Return landmarks [T, 478, 3] (NaN where there is no face) at timestamps [T] (s) as `read_openface` gives tables.

    FaceMesh states no confidence; it is 1 where there is a face.
    """
    face = np.isfinite(landmarks).all(axis=(1, 2))
    table = frame_table(timestamps, face.astype(float), face)
    table[[f"{unit}_r" for unit in MOVEMENTS]] = np.nan
    if face.any():
        measured = intensities(landmarks[face])
        table.loc[face, measured.columns] = measured.to_numpy()
    return table


# -- video -------------------------------------------------------------------------------------


def landmark_table(video: str | Path) -> pd.DataFrame:
    """Return one row for every frame of a video, in the form of `read_openface`, with every unit of `MOVEMENTS`.

    Frames are read one after the other, so that a long video needs no more memory than its landmarks.
    Raises MediaError for a file without a frame that decodes, and as `ask_mediapipe`.
    """
    timestamps, landmarks = [], []
    for time, picture in all_frames(video):
        timestamps.append(time)
        landmarks.append(_find(picture, first=not landmarks))
    if not landmarks:
        raise MediaError(f"{video}: no frame of its video stream can be decoded; expected a video, so fetch it again")
    return table_of(np.stack(landmarks), np.array(timestamps))


def _find(picture: np.ndarray, first: bool) -> np.ndarray:
    """Return the points [478, 3] of the face in an RGB picture [H, W, 3] in pixels; NaN where there is none."""
    found = ask_mediapipe("mesh", picture, first)
    if not found:
        return np.full((NUM_POINTS, 3), np.nan)
    height, width = picture.shape[:2]
    return np.array(found) * (width, height, width)  # MediaPipe gives depth on the scale of x


def analyse_landmarks(video: str | Path) -> AuAnalysis:
    """Return the AU analysis of a video by landmark geometry: the units of `REPORTED`, peaks, faceless frames.

    Raises as `landmark_table`.
    """
    table = landmark_table(video)
    hidden = [f"{unit}_r" for unit in MOVEMENTS if unit not in REPORTED]
    details = {
        "tool_version": mediapipe_version(),
        "units": REPORTED,
        "units_rule": f"those whose Pearson r with OpenFace is at least {LEAST_R}, with that r (docs/au_backends.md)",
        "scale": "movement from rest in distances between the outer eye corners, times a constant a unit, 0..5",
        "rest_rule": f"percentile {REST_PERCENTILE} of the movement over the clip",
        "face_rule": "a face mesh was found; of several faces the one that the mesh follows",
    }
    return analyse_table(table.drop(columns=hidden), str(video), TOOL, video, details=details)
