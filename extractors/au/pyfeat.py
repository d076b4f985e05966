"""Action units without OpenFace: py-feat's boosted trees over gradient histograms.

Cheong, Jolly, Xie, Byrne, Kenney & Chang, "Py-Feat: Python Facial Expression Analysis Toolbox" (Affective
Science, 2023). The package fetches its weights when it is first used, so a machine without a network needs
them in its cache.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from affect.core.au_json import AuAnalysis
from affect.core.facs import ACTION_UNITS
from affect.core.weights import why_offline
from extractors.au.openface import CONFIDENCE, analyse_table, frame_table
from extractors.media.decode import read_video

TOOL = "py-feat (Detectorv1, xgb)"

SCALE = 5
"""Intensity of a probability of 1: the trees say how likely a unit is there, not how strong it is."""

ACTIVE_THRESHOLD = SCALE / 2
"""A unit is active that is more likely there than not."""


@cache
def _detector() -> Any:
    """Load the face, landmark and action unit models; those of emotion, identity and gaze are not needed."""
    import feat

    why_offline("py-feat")  # which then asks no hub that does not answer
    try:
        return feat.Detectorv1(au_model="xgb", emotion_model=None, identity_model=None, gaze_model=None, device="auto")
    except OSError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"py-feat {feat.__version__} has no weights ({reason[:120]}): expected them in its cache or on the model "
            "hub; construct feat.Detectorv1() once where there is a network and copy feat's resources folder here"
        ) from error


def pyfeat_table(video: str | Path) -> pd.DataFrame:
    """Return one row for every frame of a video, in the form of `read_openface`: probabilities times `SCALE`.

    Of several faces in a frame the largest is kept. Units that py-feat does not know are no columns, and its
    AU11, AU24 and AU43, which OpenFace does not measure, are left out.
    Raises MediaError for a file that is no video, ModuleNotFoundError or FileNotFoundError without py-feat or weights.
    """
    opened = read_video(video)
    faces = _detector().detect(str(video), data_type="video", face_detection_threshold=CONFIDENCE, progress_bar=False)
    return table_of(pd.DataFrame(faces), opened.num_frames, opened.fps)


def table_of(faces: pd.DataFrame, num_frames: int, fps: float) -> pd.DataFrame:
    """Return py-feat's rows, one a face and NaN where there is none, as `num_frames` rows in the form of
    `read_openface`.

    Raises ValueError where a column is missing.
    """
    needed = ["frame", "FaceScore", "FaceRectWidth", "FaceRectHeight"]
    units = [unit for unit in ACTION_UNITS if unit in faces]
    missing = [key for key in needed if key not in faces] or ([] if units else ["AU01"])
    if missing:
        raise ValueError(
            f"py-feat gave no column {missing[0]!r}: expected what version 2.1 gives; install 'affect[pyfeat]' anew"
        )
    largest = (
        faces.dropna(subset=units)
        .assign(area=lambda rows: rows["FaceRectWidth"] * rows["FaceRectHeight"])
        .sort_values("area", kind="stable")
        .drop_duplicates("frame", keep="last")
        .set_index("frame")
        .reindex(range(num_frames))
    )
    score = largest["FaceScore"]
    face = (score >= CONFIDENCE).to_numpy()
    table = frame_table(np.arange(num_frames) / fps, score.fillna(0.0).to_numpy(), face)
    for unit in units:
        table[f"{unit}_r"] = (largest[unit].astype(float) * SCALE).clip(0, 5).to_numpy()
        table.loc[~table["face"], f"{unit}_r"] = np.nan
    return table


def analyse_pyfeat(video: str | Path) -> AuAnalysis:
    """Return the AU analysis of a video by py-feat: active units, peaks, faceless frames.

    Raises as `pyfeat_table`.
    """
    details = {
        "tool_version": importlib.metadata.version("py-feat"),
        "confidence_threshold": CONFIDENCE,
        "scale": f"probability that the unit is present (0..1) times {SCALE}; no intensity",
        "face_rule": "score of the face at least confidence_threshold; of several faces the largest in each frame",
    }
    return analyse_table(pyfeat_table(video), str(video), TOOL, video, ACTIVE_THRESHOLD, details)
