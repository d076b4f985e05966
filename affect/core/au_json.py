"""The AU JSON of one clip: which action units were measured when, where the peak is, what was said about it.

One schema, a superset of what MER-Factory and its forks write, so that their files are read as they are:
fields that a file lacks are empty, fields that are unknown here are kept and written back.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from affect.core.facs import INTENSITIES, PRESENCES, parse_au_description
from affect.core.files import atomic_write
from affect.core.reading import json_type, read_object, reading, require_within
from affect.core.schema import check_name

SCHEMA_VERSION = 1
ENDINGS = ("_au_analysis.json", "_merr_data.json")
"""Of the names of AU JSON files, the first of those that we write."""
PARTS = ("level", "change", "peak")
"""What an `AuWindow` says of each unit."""
MAKE_HINT = (
    "make it with: python tools/extract_features.py --stages au_json,au_text --dataset <data set> "
    "--mer-factory-output <folder of AU JSON> --video_root <folder of your clips> --openface_root <folder of tables>"
)


class FrameAus(TypedDict, total=False):
    """Action units of one frame."""

    frame: int
    """1-based."""
    timestamp: float
    """Seconds."""
    au_description: str
    active_aus: dict[str, float]
    """`AU10_r` -> intensity 0..5, active ones only; read from `au_description` in files that lack it."""
    is_peak_frame: bool
    fine_grained_description: str
    """The whole exchange that made the sentence of this frame: AU input and answer."""


class Peak(TypedDict, total=False):
    """One peak of the overall intensity."""

    peak_index: int
    """0-based."""
    frames_before_peak: int
    frames_after_peak: int
    timestamp: float
    intensity: float


class AuWindow(TypedDict):
    """What the action units did in a stretch of time, in the order of `AuCourse.units`."""

    frames: list[int]
    """First and last, 1-based."""
    level: list[float]
    """Means over the frames with a face."""
    change: list[float]
    """Mean of the later half of these frames minus that of the earlier."""
    peak: list[float]


class AuCourse(TypedDict):
    """All that was measured, active or not, in a few windows of time; those without any face are left out."""

    units: list[str]
    """Columns that the tool measured: intensities 0..5 (`AU01_r`), presences 0..1 (`AU28_c`)."""
    windows: list[AuWindow]


class AuInfo(TypedDict, total=False):
    """What is known of the clip as a whole."""

    total_frames: int
    peak_frames: list[Peak]
    """In the order of time."""
    frames_without_face: list[list[int]]
    """Runs of 1-based frame numbers, `[first, last]` with both ends included."""
    no_peak_reason: str
    """Why `peak_frames` is empty, in words; empty where there is a peak."""
    course: AuCourse


@dataclass
class AuAnalysis:
    """Everything that one AU JSON says."""

    source_path: str = ""
    """The clip."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Tool that measured, table it wrote, thresholds and rules, maker of the sentences."""
    per_frame_au_descriptions: list[FrameAus] = field(default_factory=list)
    au_info: AuInfo = field(default_factory=AuInfo)
    fine_grained_descriptions: dict[str, str] = field(default_factory=dict)
    """Frame number (1-based) -> text."""
    summary_description: dict[str, str] = field(default_factory=dict)
    """Frame number (1-based) -> sentence."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of other tools, kept as they are."""

    def has_face(self, frame: int) -> bool:
        """Whether a face was seen in a frame (1-based); files that do not say so count as having one."""
        return not any(first <= frame <= last for first, last in self.au_info.get("frames_without_face", []))

    @property
    def measured_by(self) -> str:
        """The AU backend that measured: openface, mediapipe or pyfeat; MER-Factory does not say it and has OpenFace."""
        return re.sub(r"\W", "", str(self.provenance.get("tool") or "OpenFace").split(" ")[0]).lower()

    @property
    def faceless(self) -> bool:
        """Whether the file says that no frame has a face."""
        total = self.au_info.get("total_frames", 0)
        runs = self.au_info.get("frames_without_face", [])
        return total > 0 and sum(last - first + 1 for first, last in runs) == total


_FIELDS: dict[str, type] = {
    "source_path": str,
    "provenance": dict,
    "per_frame_au_descriptions": list,
    "au_info": dict,
    "fine_grained_descriptions": dict,
    "summary_description": dict,
}


def au_json_path(root: str | Path, dataset: str, name: str) -> Path:
    """Return where the AU JSON of a clip is written: `{root}/{dataset}/{name}/{name}_au_analysis.json`.

    The dataset folder is left out where `dataset` is empty or `root` already ends in it; a folder that is
    there in another case (MERCaptionPlus for mercaptionplus) is the dataset's.
    """
    folder = _dataset_folder(Path(root), check_name(dataset, "dataset name")) if dataset else Path(root)
    return folder / check_name(name) / f"{name}{ENDINGS[0]}"


@cache
def _dataset_folder(root: Path, dataset: str) -> Path:
    """Looked up once a run: `root` may hold a million folders."""
    if root.name.lower() == dataset.lower():
        return root
    spellings = [path for path in root.iterdir() if path.name.lower() == dataset.lower()] if root.is_dir() else []
    return spellings[0] if spellings else root / dataset


def find_au_json(root: str | Path, dataset: str, name: str) -> Path:
    """Return where the AU JSON of a clip is, with or without the dataset folder, as `list_au_json` finds it.

    Raises FileNotFoundError naming both places where it is in neither.
    """
    places = list(dict.fromkeys([au_json_path(root, dataset, name), au_json_path(root, "", name)]))
    for place in places:
        if path := _in_folder(place.parent, name):
            return path
    expected = " or ".join(str(path) for path in places)
    raise FileNotFoundError(f"clip {name!r} has no AU JSON: expected {expected}; {MAKE_HINT}")


def list_au_json(root: Path) -> list[tuple[str, Path]]:
    """Return clip and AU JSON of every folder of a clip below a root, in folders of data sets or not.

    The folder is named after the clip. Its file is called as here, or `{name}_merr_data.json` as a full run of
    MER-Factory leaves it, or is the only one with such an ending.
    """
    found = {path.parent for ending in ENDINGS for place in ("*", "*/*") for path in root.glob(f"{place}/*{ending}")}
    files = ((folder.name, _in_folder(folder, folder.name)) for folder in sorted(found))
    return [(name, path) for name, path in files if path]


def _in_folder(folder: Path, name: str) -> Path | None:
    named = (path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file())
    alone = (paths[0] for ending in ENDINGS if len(paths := list(folder.glob(f"*{ending}"))) == 1)
    return next(chain(named, alone), None)


def read_au_json(path: str | Path) -> AuAnalysis:
    """Return the content of an AU JSON, made here or by any version of MER-Factory.

    Raises FileNotFoundError where there is no such file, ValueError where it is no JSON object, is of a
    newer schema, or has a field of another type than this schema gives it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an AU JSON, found no such file; {MAKE_HINT}")
    with reading(path, "JSON of action units", "make the file anew"):
        content = read_object(path, "JSON of action units", "make the file anew", real=_real)
        return _analysis(path, content)


def _analysis(path: Path, content: dict[str, Any]) -> AuAnalysis:
    """Return what a JSON object says (raises ValueError as `read_au_json`)."""
    version = content.pop("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version is {version!r}, this program reads up to {SCHEMA_VERSION}; update the program"
        )
    known = {key: content.pop(key) for key in _FIELDS if key in content}
    known = {key: value for key, value in known.items() if value is not None}
    if not known.get("per_frame_au_descriptions") and (peak := _peak_of_merfactory(content)):
        known["per_frame_au_descriptions"] = [peak]
    for key, value in known.items():
        if not isinstance(value, _FIELDS[key]):
            raise ValueError(
                f"{path}: {key} must be {json_type(_FIELDS[key]())}, found {json_type(value)}; correct it or "
                "make the file anew"
            )
    _check_parts(path, known)
    return AuAnalysis(**known, extra=content)


def write_au_json(analysis: AuAnalysis, path: str | Path) -> None:
    """Write an analysis as JSON, whole or not at all."""
    content = {"schema_version": SCHEMA_VERSION, **{key: getattr(analysis, key) for key in _FIELDS}, **analysis.extra}
    with atomic_write(Path(path)) as handle:
        handle.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def sentences(analysis: AuAnalysis) -> list[str]:
    """Return the sentences of a clip in the order of their frames.

    They are read from `summary_description`, or where that is empty from `fine_grained_descriptions`,
    of which only the answer counts where the text is a whole exchange.
    """
    texts = analysis.summary_description or analysis.fine_grained_descriptions
    return [texts[key].rpartition("\nassistant\n")[2].strip() for key in sorted(texts, key=int)]


def require_sentences(analysis: AuAnalysis, path: str | Path) -> list[str]:
    """Return the sentences of a clip, of which a faceless clip has none.

    Raises ValueError where a clip that has a face was never described.
    """
    found = sentences(analysis)
    if not found and not analysis.faceless:
        raise ValueError(
            f"{path}: expected sentences in summary_description or fine_grained_descriptions, found neither; "
            f"{MAKE_HINT}"
        )
    return found


def _check_parts(path: Path, known: dict[str, Any]) -> None:
    """Raise ValueError, naming the field, where the inside of a known field would break its readers."""

    def require(fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(f"{path}: {expected}; correct it or make the file anew")

    numbers: list[Any] = []
    for key in ("summary_description", "fine_grained_descriptions"):
        for frame, text in known.get(key, {}).items():
            fine = frame.strip().isdecimal() and isinstance(text, str)
            require(fine, f"{key} must hold frame numbers and texts, found {frame!r}: {json_type(text)}")
            numbers.append(int(frame))
    info, frames = known.get("au_info", {}), known.get("per_frame_au_descriptions", [])
    peaks, runs = info.get("peak_frames", []), info.get("frames_without_face", [])
    for key, entries in (("per_frame_au_descriptions", frames), ("au_info.peak_frames", peaks)):
        fine = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
        require(fine, f"{key} must be a list of objects, found something else")
    for frame in frames:
        active = frame["active_aus"] = frame.get("active_aus") or _described_aus(frame.get("au_description"))
        fine = isinstance(active, dict) and all(isinstance(value, int | float) for value in active.values())
        require(fine, "active_aus must hold numbers, found something else")
        numbers.append(frame.get("frame", 1))
    for peak in peaks:
        sides = (peak.get(side) for side in ("frames_before_peak", "frames_after_peak"))
        numbers += [peak.get("peak_index"), *(frames for frames in sides if frames is not None)]
    fine = isinstance(runs, list) and all(isinstance(run, list) and len(run) == 2 for run in runs)
    require(fine, "au_info.frames_without_face must hold [first, last] pairs")
    numbers += [info.get("total_frames", 0), *chain.from_iterable(runs)]
    strange = [number for number in numbers if not isinstance(number, int) or number < 0]
    require(
        not strange,
        "frame, peak_index, total_frames and the ends of frames_without_face must be whole numbers, found "
        f"{strange[:1]}",
    )
    require_within("clip_frames", max(numbers), path)
    course = info.get("course", {"units": [], "windows": []})
    require(_is_course(course), "au_info.course must hold units, and windows with as many numbers for each of them")


def _is_course(course: Any) -> bool:
    """Tell whether a field is an `AuCourse`."""
    try:
        units, parts = course["units"], [window[key] for window in course["windows"] for key in PARTS]
        numbers = all(isinstance(number, int | float) for part in parts for number in part)
        return numbers and all(len(part) == len(units) for part in parts) and set(units) <= {*INTENSITIES, *PRESENCES}
    except (TypeError, KeyError):
        return False


def _peak_of_merfactory(content: dict[str, Any]) -> FrameAus | None:
    """Return the one frame whose action units a full run of MER-Factory keeps."""
    peak = content.get("overall_peak_frame_info") or content.get("peak_frame_info")
    if not isinstance(peak, dict) or not peak.get("top_aus_intensities"):
        return None
    frame = FrameAus(active_aus=peak["top_aus_intensities"], is_peak_frame=True)
    return frame | {key: peak[of] for key, of in (("frame", "frame_number"), ("timestamp", "timestamp")) if of in peak}


def _described_aus(text: Any) -> dict[str, float]:
    """Return the intensities that a description states; of one in other words, nothing."""
    try:
        return parse_au_description(text) if isinstance(text, str) else {}
    except ValueError:
        return {}


def _real(text: str) -> float | None:
    """Return a number; NaN and infinity are no JSON, and as null they can be written back."""
    return value if math.isfinite(value := float(text)) else None
