"""One clip in a worker: its action units are measured or read, and every stream that is asked for is decoded, once."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.au_json import AuAnalysis, find_au_json, read_au_json
from affect.core.schema import Modality
from affect.faces.finders import FaceFinder, build_face_finder, find_faces, load_face_array
from extractors.au.backends import measure
from extractors.au.openface import analyse_openface, run_openface
from extractors.media.audio import load_audio, sound_clips
from extractors.media.video import frame_indices, read_video
from extractors.run.settings import Settings

logger = logging.getLogger(__name__)

FACE_FRAMES = 8
"""Frames that faces are looked for in, whatever the number of scene frames."""

CLIP_ERRORS = (ValueError, OSError, RuntimeError)
"""What bad clips raise as a rule; the words of these errors say all, others are named with their type."""


@dataclass(frozen=True)
class ClipTask:
    """What to do with one clip before it can be described and encoded; `Session.task` makes it."""

    settings: Settings
    name: str
    streams: tuple[Modality, ...]
    """Streams to extract; all but the action units are decoded."""
    au: bool = False
    """Whether its action units are measured, or read where that was done."""
    video: Path | None = None
    audio: Path | None = None
    """Sound file, or the video itself."""
    table: Path | None = None
    """Where its OpenFace table is, or would be put."""
    prepare: Mapping[Modality, Callable[[Any], Any]] = field(default_factory=dict)
    """What the encoder of a stream wants done to a clip before it is sent on; nothing where it is not named."""
    extra_time: float = 0.0
    """Seconds beyond the usual limit that this clip may take."""
    reader: str = "auto"
    """auto, or pyav where decord is not to be tried."""

    @property
    def seen(self) -> tuple[Modality, ...]:
        """Streams that frames of the video are decoded for."""
        pictures = (Modality.FRAME,) if self.settings.face_root else (Modality.FRAME, Modality.FACE)
        return tuple(stream for stream in self.streams if stream in pictures)

    @property
    def sampling(self) -> str:
        """How scene frames are chosen; a clip whose action units nobody asks for has no peaks to go by."""
        sampling = self.settings.sampling
        return sampling if self.au or sampling != "emotion_peak" else "uniform"


@dataclass
class ClipResult:
    """What has come of a clip so far, stage by stage; what failed is in `errors`."""

    task: ClipTask
    analysis: AuAnalysis | None = None
    measured: bool = False
    """Whether the analysis is new, and so not on disk yet."""
    items: dict[Modality, Any] = field(default_factory=dict)
    """Stream -> what its encoder takes: pictures uint8 [T, H, W, 3] in RGB (no rows without a face), sound
    float32 [clips, samples] at 16 kHz (None for a clip without sound), as `ClipTask.prepare` left them."""
    features: dict[Modality, np.ndarray] = field(default_factory=dict)
    """Stream -> float32 [T, D]."""
    num_frames: int = 0
    """Frames of the video; 0 where it was not looked at."""
    reader: str = ""
    """Library that read the video."""
    made: list[str] = field(default_factory=list)
    """Stages and streams that are new, in the order in which they came."""
    errors: dict[str, str] = field(default_factory=dict)
    """Stage or stream -> reason."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Stage or stream that the clip's own files failed at -> fingerprint of these and of the settings."""
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> time it took."""

    @property
    def name(self) -> str:
        """Name of the clip."""
        return self.task.name


def prepare_clip(task: ClipTask) -> ClipResult:
    """Measure the action units of a clip and decode it, as far as its task asks for either."""
    result = ClipResult(task)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if task.au:
            with stopwatch(result.seconds, "au_json"):
                try:
                    result.analysis, result.measured = analyse_clip(task)
                except Exception as error:  # whatever a table or a library does on one clip, the others go on
                    result.errors["au_json"] = reason_of(error)
        streams = [stream for stream in task.streams if stream != Modality.AU]
        if task.sampling == "emotion_peak" and Modality.FRAME in streams and result.analysis is None:
            result.errors[Modality.FRAME] = "its peak is not known: expected an AU analysis; see the failure at au_json"
            streams.remove(Modality.FRAME)
        if streams:
            with stopwatch(result.seconds, "decode"):
                _decode(task, streams, result)
    result.warnings = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return result


def analyse_clip(task: ClipTask) -> tuple[AuAnalysis, bool]:
    """Return the AU analysis of a clip and whether it is new.

    It is the clip's AU JSON, else made from its OpenFace table, else measured by the AU backend. Raises
    FileNotFoundError when there is nothing to go by.
    """
    settings, name, table = task.settings, task.name, task.table
    if not settings.measures:
        return read_au_json(find_au_json(settings.au_root or "", settings.dataset, name)), False
    if not settings.overwrite and (known := known_au_json(settings, name)):
        return read_au_json(known), False
    if settings.au_backend != "openface":
        if task.video is None:
            raise FileNotFoundError(
                f"clip {name!r} has no video to measure: expected a file of that name in video_root"
            )
        return measure(settings.au_backend, task.video), True
    if table is None or not table.is_file():
        if settings.openface_executable is None or task.video is None:
            raise FileNotFoundError(
                f"clip {name!r} has no AU JSON and no OpenFace table (expected {table or 'a folder of tables'}); "
                "give --openface_root, or --openface_executable (or OPENFACE_EXECUTABLE) or another --au_backend to "
                "measure it"
            )
        folder = table.parent if table else (settings.au_root or Path("output")) / "openface"
        table = run_openface(task.video, folder, settings.openface_executable, settings.openface_args)
    return analyse_openface(table, source_path=task.video or table), True


def known_au_json(settings: Settings, name: str) -> Path | None:
    """Return where the AU JSON of a clip is, None where it has none."""
    try:
        return find_au_json(settings.au_root, settings.dataset, name) if settings.au_root else None
    except FileNotFoundError:
        return None


def reason_of(error: Exception) -> str:
    """Return what an error says, on one line; with its type where that is not an error of bad clips."""
    text = str(error) if isinstance(error, CLIP_ERRORS) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def log_warnings(results: Iterable[ClipResult], logged: set[str]) -> None:
    """Log each text that libraries warned with, once."""
    for text in (text for result in results for text in result.warnings):
        if text not in logged:
            logged.add(text)
            logger.warning("%s", text)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to the seconds of a stage."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start


def _decode(task: ClipTask, streams: list[Modality], result: ClipResult) -> None:
    """Decode some streams of a clip; what fails is in its errors, the other streams are there."""
    seen = [stream for stream in task.seen if stream in streams]
    if Modality.AUDIO in streams:
        with _noting(result, [Modality.AUDIO]):
            _keep(result, Modality.AUDIO, _sound(task))
    if Modality.FACE in streams and Modality.FACE not in seen:
        with _noting(result, [Modality.FACE]):
            faces = load_face_array(task.settings.face_root, task.name)
            uniform = faces[frame_indices(len(faces), FACE_FRAMES)] if len(faces) else faces
            _keep(result, Modality.FACE, uniform)
    if seen:
        with _noting(result, seen):
            _look(task, seen, result)


def _look(task: ClipTask, seen: list[Modality], result: ClipResult) -> None:
    """Decode the frames that scene and faces need, each once."""
    if task.video is None:
        raise FileNotFoundError(f"clip {task.name!r} has no video: expected a file of that name in --video_root")
    video = read_video(task.video, task.reader)
    au_info = result.analysis.au_info if result.analysis else None
    scene = frame_indices(video.num_frames, task.settings.frame_count, task.sampling, au_info)
    faces = frame_indices(video.num_frames, FACE_FRAMES)
    wanted = sorted({*(scene if Modality.FRAME in seen else ()), *(faces if Modality.FACE in seen else ())})
    pictures = dict(zip(wanted, video.frames(wanted), strict=True))
    result.reader, result.num_frames = video.reader, video.num_frames
    if Modality.FRAME in seen:
        _keep(result, Modality.FRAME, np.stack([pictures[index] for index in scene]))
    if Modality.FACE in seen:
        finder = _finder(task.settings.face_finder)
        _keep(result, Modality.FACE, find_faces(np.stack([pictures[index] for index in faces]), finder).crops)


def _sound(task: ClipTask) -> np.ndarray | None:
    if task.audio is None:
        raise FileNotFoundError(
            f"clip {task.name!r} has no sound: expected a file of that name in --audio_root or --video_root"
        )
    wave = load_audio(task.audio)
    return None if wave is None else sound_clips(wave, task.settings.clips_per_video)


def _keep(result: ClipResult, stream: Modality, item: Any) -> None:
    prepare = result.task.prepare.get(stream)
    result.items[stream] = prepare(item) if prepare else item


@contextmanager
def _noting(result: ClipResult, streams: Iterable[Modality]) -> Iterator[None]:
    """Note what a bad file raises as the error of `streams`; anything else is a fault of the program."""
    try:
        yield
    except CLIP_ERRORS as error:
        result.errors.update(dict.fromkeys(streams, reason_of(error)))


@cache
def _finder(name: str) -> FaceFinder:
    """One detector a process: building it costs more than using it."""
    return build_face_finder(name)
