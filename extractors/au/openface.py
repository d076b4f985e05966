"""OpenFace's action unit tables: run the tool, read what it wrote, find the peaks.

Baltrusaitis et al., "OpenFace 2.0: Facial Behavior Analysis Toolkit" (FG 2018). OpenFace has a
licence of its own, so it is never required: a table that it made elsewhere does as well.
"""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import signal as scipy_signal

from affect.core.au_json import AuAnalysis, AuInfo, FrameAus, Peak
from affect.core.facs import INTENSITIES, PRESENCES, au_description
from affect.core.reading import reading, require_within
from extractors.au.course import course_of

EXECUTABLE_VARIABLE = "OPENFACE_EXECUTABLE"
"""Environment variable that names OpenFace's FeatureExtraction binary."""

CONFIDENCE = 0.8
"""Least tracking confidence of a frame whose action units are believed."""

ACTIVE_THRESHOLD = 0.8
"""An action unit is active above this intensity (0..5): the rule of MER-Factory, and the one that users'
description models were tuned with (their inputs start at 0.81)."""

PEAK_HEIGHT, PEAK_DISTANCE = 0.8, 20
"""Least overall intensity of a peak, and least number of frames between two (as in MER-Factory)."""

HIGHEST = 5
"""Of an action unit's intensity, in OpenFace as in FACS."""
_ROW_COLUMNS = ("frame", "timestamp", "confidence", "success")
_UNIT_COLUMNS = {*INTENSITIES, *PRESENCES}
_UNIT_COLUMN = re.compile(r"(?:fac_)?(AU\d\d)(?:_r|_c|int|pres)")
_HINT = "make the table anew with OpenFace's FeatureExtraction -aus"


# -- running -----------------------------------------------------------------------------------


def run_openface(
    video: str | Path,
    out_dir: str | Path,
    executable: str | None = None,
    extra_args: Sequence[str] = (),
    timeout_s: float = 600,
) -> Path:
    """Run FeatureExtraction on a video and return its table, `{out_dir}/{video stem}.csv`.

    The binary is `executable`, or what OPENFACE_EXECUTABLE names, or FeatureExtraction on the PATH.
    The table appears only when the run ended well; nothing else that the tool writes is kept.
    Raises FileNotFoundError where video or binary is absent, TimeoutError after `timeout_s` seconds,
    RuntimeError where the tool cannot start, fails or writes no table.
    """
    video, out_dir = Path(video).resolve(), Path(out_dir).resolve()
    if not video.is_file():
        raise FileNotFoundError(f"{video}: expected a video, found no such file; check the path")
    wanted = executable or os.environ.get(EXECUTABLE_VARIABLE) or "FeatureExtraction"
    binary = shutil.which(wanted)
    if binary is None:
        raise FileNotFoundError(
            f"OpenFace's FeatureExtraction was not found as {wanted!r}: expected a runnable file; install OpenFace, "
            f"name its binary in {EXECUTABLE_VARIABLE}, or bring tables that were made elsewhere"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    # a folder of its own, so that neither an old table nor half of one passes for the result
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".openface.") as work:
        command = [binary, "-f", str(video), "-out_dir", work, "-aus", *extra_args]
        code, output = _run(command, timeout_s, video)
        last_line = (output.strip().splitlines() or ["no output"])[-1]
        made = Path(work) / f"{video.stem}.csv"
        if code != 0:
            raise RuntimeError(
                f"{video}: OpenFace failed with exit code {code} ({last_line}); run it by hand to see more"
            )
        if not made.is_file():
            raise RuntimeError(f"{video}: OpenFace wrote no table {made.name} ({last_line}); can it open this video?")
        return made.replace(out_dir / made.name)


def _run(command: list[str], timeout_s: float, video: Path) -> tuple[int, str]:
    """Run a command with a time limit; return its exit code and what it said (errors last)."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
    except OSError as error:
        raise RuntimeError(
            f"{command[0]} could not be started ({error.strerror}); is it built for this machine?"
        ) from None
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"{video}: OpenFace did not end within {timeout_s:g} s and was stopped; raise the limit or drop the clip"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the binary may be a script that started others
            process.communicate()
    return process.returncode, output + "\n" + errors


# -- reading -----------------------------------------------------------------------------------


def read_openface(path: str | Path) -> pd.DataFrame:
    """Return one row a frame: frame (1..N), timestamp (s), confidence, face (bool), AU01_r ... (0..5),
    AU01_c ... (0, 1) where the table has them.

    Reads every layout of FeatureExtraction, and OpenDBM's `*_facau.csv` that renames the columns of one.
    Negative intensities become 0, those above 5 become 5 with a warning. A frame whose `success` is 0, whose confidence
    is below `CONFIDENCE` or that the table leaves out has no face, and NaN for its AUs.
    Of several faces (`face_id`) the one is kept whose believed rows have the largest sum of confidence,
    that is the longest track, weighed by how sure the tool was; the lowest id of equals.
    Raises FileNotFoundError, or ValueError for a file that is empty, cut or no such table.
    """
    path = Path(path)
    with reading(path, "an OpenFace table", _HINT):
        return _read_table(path)


def _read_table(path: Path) -> pd.DataFrame:
    numbers = _read_numbers(path)
    _check_rows(path, numbers)
    numbers["face"] = (numbers["success"] == 1) & (numbers["confidence"] >= CONFIDENCE)
    units = [key for key in numbers if key in _UNIT_COLUMNS]
    holes = ~np.isfinite(numbers.loc[numbers["face"], units])
    if holes.to_numpy().any():
        row, unit = holes.stack().idxmax()
        raise ValueError(f"{path}: row {row} has a face but no number for {unit}; {_HINT}")
    if (highest := numbers.loc[numbers["face"], units].to_numpy().max(initial=0)) > HIGHEST:
        warnings.warn(f"{path}: an action unit of {highest:g} counts as {HIGHEST}, the most there is", stacklevel=3)
    numbers[units] = numbers[units].clip(0, HIGHEST).where(numbers["face"])
    kept = _keep_one_face(numbers)
    return _fill_gaps(kept[["frame", "timestamp", "confidence", "face", *units]], int(numbers["frame"].max()))


def _read_numbers(path: Path) -> pd.DataFrame:
    """Return the columns that matter as numbers, indexed by line of the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an OpenFace table, found no such file; {_HINT}")
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise ValueError(f"{path}: expected an OpenFace table, found an empty file; {_HINT}")
        columns = _locate_columns(path, header)
        lines, rows = [], []
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}: row {reader.line_num} has {len(cells)} of {len(header)} columns, "
                    f"so the file was cut or damaged; {_HINT}"
                )
            lines.append(reader.line_num)
            try:
                rows.append([float(cells[i]) for i in columns.values()])
            except ValueError:  # at the cell that is none, or NaN in words of its own
                rows.append([_number(path, reader.line_num, cells[i], header[i]) for i in columns.values()])
    if not rows:
        raise ValueError(f"{path}: expected one row a frame, found the header alone; {_HINT}")
    return pd.DataFrame(rows, index=lines, columns=list(columns))


def _locate_columns(path: Path, header: list[str]) -> dict[str, int]:
    """Map the columns that are read, under one spelling, to their places."""
    places = {name: i for i, name in enumerate(header)}
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise ValueError(f"{path}: expected each column once, found {twice[0]!r} twice; {_HINT}")
    missing = [name for name in _ROW_COLUMNS if name not in places]
    if missing:
        raise ValueError(f"{path}: expected an OpenFace table of a video, found no column {missing[0]!r}; {_HINT}")
    found = {name: places[name] for name in (*_ROW_COLUMNS, "face_id") if name in places}
    matches = {_UNIT_COLUMN.fullmatch(name): i for name, i in places.items()}
    units = {f"{match[1]}_{'r' if match[0][-1] in 'rt' else 'c'}": i for match, i in matches.items() if match}
    if not any(unit.endswith("_r") for unit in units):
        raise ValueError(f"{path}: expected action unit columns such as 'AU12_r', found none; {_HINT}")
    if unknown := sorted(units.keys() - _UNIT_COLUMNS):
        raise ValueError(f"{path}: column {unknown[0]!r} is no action unit that OpenFace measures; {_HINT}")
    return {**found, **units}


def _number(path: Path, row: int, cell: str, column: str) -> float:
    """Return a cell as a number; NaN, in any platform's spelling, where the tool measured nothing."""
    try:
        return float(cell)
    except ValueError:
        if re.fullmatch(r"\s*|[+-]?nan.*", cell, re.IGNORECASE):
            return math.nan
        raise ValueError(f"{path}: row {row}, column {column!r}: expected a number, found {cell!r}; {_HINT}") from None


def _check_rows(path: Path, numbers: pd.DataFrame) -> None:
    """Raise ValueError where a row does not say which frame it is, or which face, or if there is one."""
    for key in numbers.columns.difference(_UNIT_COLUMNS, sort=False):
        bad = ~np.isfinite(numbers[key])
        if bad.any():
            raise ValueError(f"{path}: row {bad.idxmax()}, column {key!r}: expected a number, found none; {_HINT}")
    frame = numbers["frame"]
    bad = (frame < 1) | (frame % 1 != 0)
    if bad.any():
        row = bad.idxmax()
        raise ValueError(f"{path}: row {row}: frame must count 1, 2, 3 ..., found {frame[row]:g}; {_HINT}")
    require_within("clip_frames", frame.max(), path)
    twice = numbers.duplicated([key for key in ("frame", "face_id") if key in numbers])
    if twice.any():
        row = twice.idxmax()
        raise ValueError(f"{path}: row {row}: frame {frame[row]:g} occurs twice for the same face; {_HINT}")


def _keep_one_face(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the face that was tracked longest and most surely."""
    if "face_id" not in numbers:
        return numbers
    trust = numbers["confidence"].where(numbers["face"], 0.0).groupby(numbers["face_id"]).sum()
    return numbers[numbers["face_id"] == trust.idxmax()]


def _fill_gaps(table: pd.DataFrame, last_frame: int) -> pd.DataFrame:
    """Return one row for every frame 1..`last_frame`; the added ones have no face."""
    table = table.astype({"frame": int}).set_index("frame").sort_index()
    known, times = table.index.to_numpy(), table["timestamp"].to_numpy()
    step = (times[-1] - times[0]) / (known[-1] - known[0]) if len(known) > 1 else 0.0
    frames = pd.RangeIndex(1, last_frame + 1, name="frame")
    filled = table.reindex(frames)
    filled["timestamp"] = np.interp(frames, known, times)
    outside = np.minimum(frames - known[0], 0) + np.maximum(frames - known[-1], 0)
    filled["timestamp"] = (filled["timestamp"] + step * outside).clip(lower=0).round(3)
    filled["face"] = filled["face"].fillna(False).astype(bool)
    filled["confidence"] = filled["confidence"].fillna(0.0)
    return filled.reset_index()


def frame_table(timestamps: np.ndarray, confidence: np.ndarray, face: np.ndarray) -> pd.DataFrame:
    """Return a table in the form of `read_openface` without AUs; timestamps (s), confidence and face are [T]."""
    rows = {"frame": np.arange(1, len(face) + 1), "timestamp": np.round(timestamps, 3)}
    return pd.DataFrame({**rows, "confidence": confidence, "face": face})


# -- analysing ---------------------------------------------------------------------------------


def overall_intensity(table: pd.DataFrame) -> np.ndarray:
    """Return the sum of all AU intensities of each frame [N]; 0 where there is no face."""
    return table.filter(regex=r"^AU\d\d_r$").sum(axis=1).to_numpy(dtype=float)


def find_peaks(intensity: np.ndarray) -> list[int]:
    """Return the 0-based frames where the overall intensity [N] peaks, in the order of time."""
    return [int(i) for i in scipy_signal.find_peaks(intensity, height=PEAK_HEIGHT, distance=PEAK_DISTANCE)[0]]


def analyse_openface(path: str | Path, source_path: str | Path = "") -> AuAnalysis:
    """Return what a table says of its clip: active AUs of every frame, peaks, frames without a face.

    `source_path` is the video. Raises as `read_openface` does.
    """
    details = {
        "confidence_threshold": CONFIDENCE,
        "face_rule": "success = 1 and confidence at least confidence_threshold; of several faces the one with the "
        "largest sum of confidence",
    }
    return analyse_table(read_openface(path), str(path), "OpenFace", source_path, details=details)


def analyse_table(
    table: pd.DataFrame,
    source: str,
    tool: str,
    source_path: str | Path = "",
    active_threshold: float = ACTIVE_THRESHOLD,
    details: Mapping[str, Any] | None = None,
) -> AuAnalysis:
    """Return what a table in the form of `read_openface` says of its clip, whatever tool measured it.

    `source` is what the tool measured or wrote, `source_path` the video; `details` joins the provenance.
    """
    intensity = overall_intensity(table)
    peaks = find_peaks(intensity)
    units = [name for name in table if name in INTENSITIES]
    frames: list[FrameAus] = []
    for i, row in enumerate(table.to_dict("records")):
        active = {unit: row[unit] for unit in units if row[unit] > active_threshold}
        when = {"frame": row["frame"], "timestamp": row["timestamp"]}
        shown = {"au_description": au_description(active), "active_aus": active, "is_peak_frame": i in peaks}
        frames.append(FrameAus(**when, **shown, fine_grained_description=""))
    info = AuInfo(
        total_frames=len(table),
        peak_frames=[
            Peak(
                peak_index=i,
                frames_before_peak=i,
                frames_after_peak=len(table) - 1 - i,
                timestamp=frames[i]["timestamp"],
                intensity=round(float(intensity[i]), 4),
            )
            for i in peaks
        ],
        frames_without_face=_runs(table.loc[~table["face"], "frame"].tolist()),
        no_peak_reason="" if peaks else _no_peak_reason(table, intensity),
        course=course_of(table),
    )
    provenance = {
        "tool": tool,
        "source": source,
        "active_threshold": active_threshold,
        "active_rule": "intensity above active_threshold",
        "peak_rule": f"scipy.signal.find_peaks(sum of AU*_r, height={PEAK_HEIGHT}, distance={PEAK_DISTANCE})",
        **(details or {}),
    }
    return AuAnalysis(str(source_path), provenance, frames, info)


def _runs(numbers: list[int]) -> list[list[int]]:
    """Return ascending numbers as runs: [1, 2, 3, 7] -> [[1, 3], [7, 7]]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def _no_peak_reason(table: pd.DataFrame, intensity: np.ndarray) -> str:
    """Say in words why no frame is a peak."""
    if not table["face"].any():
        return "no frame has a face"
    best = int(intensity.argmax())
    if intensity[best] < PEAK_HEIGHT:
        return f"the overall intensity never reaches {PEAK_HEIGHT:g}; its largest value is {intensity[best]:.2f}"
    return (
        f"there is expression (overall intensity {intensity[best]:.2f} at frame {best + 1}), but no peak by the rule: "
        "it does not rise and fall again inside the clip"
    )
