"""One clip from raw files to features: measured or read and decoded in a worker, then described and encoded.

Whoever has many clips decodes them side by side and describes and encodes them together (`extractors.run.driver`).
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from affect.core.au_json import AuAnalysis, au_json_path, find_au_json, read_au_json, require_sentences
from affect.core.schema import AU_VALUES, Modality
from affect.faces.finders import FaceFinder, build_face_finder, find_faces, load_face_array
from extractors.au.openface import analyse_openface, run_openface
from extractors.media.decode import count_frames, load_audio, read_video, sound_clips
from extractors.media.sampling import frame_indices
from extractors.run.session import ClipTask, Describe, Session, Settings, check_backend, known_au_json

logger = logging.getLogger(__name__)

FACE_FRAMES = 8
"""Frames that faces are looked for in, whatever the number of scene frames."""

SQUASHED = 224
"""Side of pictures that are squashed before their encoder sees them, as in the reference."""

ENCODER_BATCH = 16
"""Clips that are described and encoded together."""

_NOTHING = object()
"""Stands for a stream that is not asked for or failed; None is a clip without sound."""

FRAMES_OFF = 0.1
"""Share of a video's frames by which its AU JSON or table may be off before it looks like another clip's."""

CLIP_ERRORS = (ValueError, OSError, RuntimeError)
"""What bad clips raise as a rule; the words of these errors say all, others are named with their type."""


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
                    analysis, measured = analyse_clip(task)
                    _check_frames(task, analysis)
                    result.analysis, result.measured = analysis, measured
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
    if task.measured_by not in (None, settings.au_backend) and not settings.overwrite:
        raise ValueError(
            f"clip {name!r} would be measured by {settings.au_backend}, but others of its data set were by "
            f"{task.measured_by}; expected one for all, so give --au_backend {task.measured_by}, or measure all anew "
            "with --overwrite"
        )
    if settings.au_backend != "openface":
        if task.video is None:
            raise FileNotFoundError(
                f"clip {name!r} has no video to measure: expected a file of that name in video_root"
            )
        return _measure(settings.au_backend, task.video), True
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


def _check_frames(task: ClipTask, analysis: AuAnalysis) -> None:
    """Raise ValueError where action units were measured on another number of frames than the clip has."""
    measured = analysis.au_info.get("total_frames", 0)
    frames = count_frames(task.video) if task.video and measured else 0
    if not frames or abs(measured - frames) <= FRAMES_OFF * frames:
        return
    found = f"{task.video} has {frames} frames, but its action units were measured on {measured}"
    if not task.settings.allow_mismatch:
        raise ValueError(
            f"{found} ({analysis.provenance.get('source') or 'AU JSON'}), as if of another clip; expected as many, so "
            "bring the clip's own table or AU JSON, or give --allow_mismatch"
        )
    warnings.warn(found, stacklevel=2)


def _measure(backend: str, video: Path) -> AuAnalysis:
    check_backend(backend)
    if backend == "mediapipe":
        from extractors.au.landmarks import analyse_landmarks

        return analyse_landmarks(video)
    from extractors.au.pyfeat import analyse_pyfeat

    return analyse_pyfeat(video)


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
            if Modality.FACE in task.squashed and len(faces):
                uniform = np.stack([cv2.resize(face, (SQUASHED, SQUASHED)) for face in uniform])  # bilinear
            _keep(result, Modality.FACE, uniform)
    if seen:
        with _noting(result, seen):
            _look(task, seen, result)


def _look(task: ClipTask, seen: list[Modality], result: ClipResult) -> None:
    """Decode the frames that scene and faces need, each once; what is squashed comes so from the decoder."""
    if task.video is None:
        raise FileNotFoundError(f"clip {task.name!r} has no video: expected a file of that name in --video_root")
    video = read_video(task.video, task.reader)
    au_info = result.analysis.au_info if result.analysis else None
    scene = frame_indices(video.num_frames, task.settings.frame_count, task.sampling, au_info)
    faces = frame_indices(video.num_frames, FACE_FRAMES)
    if Modality.FRAME in seen and Modality.FRAME in task.squashed:
        _keep(result, Modality.FRAME, video.frames(scene, SQUASHED))
        seen = [stream for stream in seen if stream != Modality.FRAME]
    wanted = sorted({*(scene if Modality.FRAME in seen else ()), *(faces if Modality.FACE in seen else ())})
    pictures = dict(zip(wanted, video.frames(wanted), strict=True)) if wanted else {}
    result.reader = video.reader
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


def describe_clips(settings: Settings, describe: Describe, results: Sequence[ClipResult]) -> None:
    """Give sentences to the clips that lack them."""
    clips: list[ClipResult] = []
    items: list[tuple[AuAnalysis, list[int]]] = []
    for result in results:
        analysis = result.analysis
        if "au_text" not in settings.stages or analysis is None or analysis.faceless:
            continue
        if settings.overwrite or not (analysis.summary_description or analysis.fine_grained_descriptions):
            try:
                items.append((analysis, frames_to_describe(analysis, settings.frame_count, settings.sampling)))
                clips.append(result)
            except ValueError as error:
                result.errors["au_text"] = reason_of(error)
    for result, analysis in zip(clips, _all_or_each("au_text", describe, clips, items), strict=True):
        if analysis is not None:
            how = f"{settings.frame_count} frames, {settings.sampling}"
            result.analysis = replace(analysis, provenance={**analysis.provenance, "described": how})
            result.made.append("au_text")


def encode_clips(session: Session, results: Sequence[ClipResult]) -> None:
    """Make the features that are asked for, and those of sentences that are new."""
    for stream in session.settings.features:
        found = [(result, _item(session, stream, result)) for result in results]
        ready = [(result, item) for result, item in found if item is not _NOTHING]
        if not ready:
            continue
        clips, items = zip(*ready, strict=True)
        for result, array in zip(clips, _all_or_each(stream, session.encoder(stream), clips, items), strict=True):
            if array is not None:
                result.features[stream] = array


def frames_to_describe(analysis: AuAnalysis, count: int, sampling: str) -> list[int]:
    """Return the frames (0-based) that get a sentence: those that sampling picks of the frames that were measured.

    Raises ValueError when none was.
    """
    numbers = [frame["frame"] for frame in analysis.per_frame_au_descriptions if "frame" in frame]
    if not numbers:
        raise ValueError(
            f"{analysis.source_path or 'AU JSON'}: expected per_frame_au_descriptions to describe, found none; "
            "make the AU JSON anew from an OpenFace table"
        )
    return [numbers[i] - 1 for i in frame_indices(len(numbers), count, sampling, analysis.au_info)]


def _item(session: Session, stream: Modality, result: ClipResult) -> Any:
    """Return what the encoder of a stream takes of a clip; of AU what is asked for or out of date."""
    if stream != Modality.AU:
        return result.items.get(stream, _NOTHING)
    if result.analysis is None or "au_text" in result.errors:
        return _NOTHING
    if Modality.AU not in result.task.streams and "au_text" not in result.made:
        return _NOTHING
    encoder = session.encoder(stream)
    try:
        if encoder.name == AU_VALUES:
            return encoder.prepare(result.analysis)
        path = au_json_path(session.settings.au_root or "", session.settings.dataset, result.name)
        return encoder.prepare(require_sentences(result.analysis, path))
    except ValueError as error:
        result.errors["au_text"] = reason_of(error)
        return _NOTHING


def _all_or_each(stage: str, make: Callable[[list], list], results: Sequence[ClipResult], items: Sequence) -> list:
    """Return what is made of each item, all at once; when that fails, one by one, with None for those that fail.

    The time it takes is shared out to the clips.
    """
    if not items:
        return []
    start = time.monotonic()
    try:
        made = list(make(list(items)))
    except Exception as error:  # whatever a library raises on one clip, the others go on
        if len(items) > 1:
            return [_all_or_each(stage, make, [result], [item])[0] for result, item in zip(results, items, strict=True)]
        results[0].errors[str(stage)] = reason_of(error)
        made = [None]
    share = (time.monotonic() - start) / len(items)
    clock = "au_text" if stage == "au_text" else "encode"
    for result in results:
        result.seconds[clock] = result.seconds.get(clock, 0.0) + share
    return made


def extract_clip(
    session: Session,
    video: Path,
    audio: Path | None = None,
    openface_csv: Path | None = None,
    describe: bool = False,
) -> ClipResult:
    """Return a clip with its features, as the stages would store them, and its AU analysis.

    Without anything to read or measure action units from, the clip has no analysis and no AU rows. describe: it is
    analysed and described even where no stream needs that. Raises ValueError when any part of it cannot be read.
    """
    settings = session.settings
    to_go_by = openface_csv or settings.openface_root or settings.openface_executable or settings.au_root
    au = (describe or settings.wants_au) and (to_go_by is not None or settings.au_backend != "openface")
    with tempfile.TemporaryDirectory() as scratch:
        if settings.openface_executable and not settings.openface_root:
            openface_csv = openface_csv or Path(scratch) / f"{video.stem}.csv"
        result = prepare_clip(session.task(video.stem, settings.features, au, video, audio or video, openface_csv))
    log_warnings([result], set())
    if not result.errors:
        describe_clips(settings, session.describe, [result])
        encode_clips(session, [result])
    if result.errors:
        raise ValueError("; ".join(dict.fromkeys(result.errors.values())))
    if Modality.AU in settings.features and not au:
        result.features[Modality.AU] = np.zeros((0, session.encoder(Modality.AU).dim), np.float32)
    return result
