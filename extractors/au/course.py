"""The course of action units over a clip: level, change and peak of each unit in a few windows of time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from affect.core.au_json import PARTS, AuAnalysis, AuCourse, AuWindow
from affect.core.facs import INTENSITIES, PRESENCES
from affect.core.schema import UNMEASURED

WINDOWS = 8
"""Most stretches of time that a clip is divided into."""

COLUMNS = tuple((part, unit) for part in PARTS for unit in INTENSITIES) + tuple(("level", unit) for unit in PRESENCES)
"""What the numbers of a row are: level, change and peak of the 17 intensities, then the share of 18 presences."""


def course_of(table: pd.DataFrame) -> AuCourse:
    """Return the course of all units of a table in the form of `read_openface`."""
    units = [name for name in (*INTENSITIES, *PRESENCES) if name in table]
    values, face = table[units].to_numpy(float), table["face"].to_numpy(bool)
    windows = []
    for rows in np.array_split(np.arange(len(table)), min(WINDOWS, len(table)) or 1):
        seen = values[rows[face[rows]]]
        if len(seen):
            half = len(seen) // 2
            change = seen[half:].mean(axis=0) - seen[: max(half, 1)].mean(axis=0)
            parts = zip(PARTS, (seen.mean(axis=0), change, seen.max(axis=0)), strict=True)
            numbers = {part: np.round(each, 4).tolist() for part, each in parts}
            windows.append(AuWindow(frames=[int(rows[0]) + 1, int(rows[-1]) + 1], **numbers))
    return AuCourse(units=units, windows=windows)


def values_of(analysis: AuAnalysis) -> np.ndarray:
    """Return the numbers of a clip's windows, float32 [W, 69] in the order of `COLUMNS`; no rows without a face.

    A file of other tools that holds only the units that are active gives intensities alone, 0 where a unit is not
    among these. Raises ValueError for a clip with a face of which no frame was measured.
    """
    course = analysis.au_info.get("course") or _of_active(analysis)
    rows = np.full((len(course["windows"]), len(COLUMNS)), UNMEASURED, np.float32)
    places = {unit: place for place, unit in enumerate(course["units"])}
    for row, window in zip(rows, course["windows"], strict=True):
        for column, (part, unit) in enumerate(COLUMNS):
            if unit in places:
                row[column] = window[part][places[unit]]
    if not len(rows) and not analysis.faceless:
        raise ValueError(
            f"{analysis.source_path or 'AU JSON'}: expected per_frame_au_descriptions or au_info.course to take "
            "intensities from, found neither; make the AU JSON anew from an OpenFace table"
        )
    return rows


def _of_active(analysis: AuAnalysis) -> AuCourse:
    frames = [frame for frame in analysis.per_frame_au_descriptions if analysis.has_face(frame.get("frame", 1))]
    values = pd.DataFrame([frame["active_aus"] for frame in frames], columns=list(INTENSITIES)).fillna(0.0)
    return course_of(values.assign(face=True))
