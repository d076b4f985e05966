"""One clip on its way through the stages: measured and decoded in a worker, then described and encoded."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from affect.core.au_json import AuAnalysis, find_au_json, read_au_json, sentences
from affect.core.schema import Modality, check_name
from affect.features.store import FeatureSpec
from extractors.au.backends import measure
from extractors.au.openface import analyse_openface, run_openface
from extractors.encoders import Encoder
from extractors.media.decode import Media, MediaTask, load_media
from extractors.media.video import frame_indices

logger = logging.getLogger(__name__)

FRAMES_OFF = 0.1
"""Share of a video's frames by which its table may be off before it looks like another clip's."""

CLIP_ERRORS = (ValueError, OSError, RuntimeError)
"""What bad clips raise as a rule; the words of these errors say all, others are named with their type."""

Describe = Callable[[Sequence[tuple[AuAnalysis, Sequence[int]]]], list[AuAnalysis]]
"""A maker of AU sentences for some frames (0-based) of each of several clips."""


@dataclass(frozen=True)
class Sources:
    """Where the raw material of the clips is; every folder holds files named after the clips."""

    video_root: Path | None = None
    audio_root: Path | None = None
    face_root: Path | None = None
    openface_root: Path | None = None
    """Folder of OpenFace tables {name}.csv."""
    openface_executable: str | None = None
    openface_args: tuple[str, ...] = ()
    au_root: Path | None = None
    """Folder of AU JSON files (MER-Factory's output folder)."""
    au_backend: str = "openface"
    """What measures the action units of a clip without AU JSON: one of `extractors.au.backends.AU_BACKENDS`."""

    def openface_table(self, name: str) -> Path | None:
        """Return where the OpenFace table of a clip would be."""
        return self.openface_root / f"{check_name(name)}.csv" if self.openface_root else None


@dataclass(frozen=True)
class AuTask:
    """Whose action units to measure, or to read where that was done."""

    sources: Sources
    dataset: str
    measure: bool = True
    """False: an AU JSON must be there."""
    remake: bool = False
    """Measure even where there is an AU JSON."""


@dataclass(frozen=True)
class ClipTask:
    """What to do with one clip before it can be described and encoded."""

    media: MediaTask
    asked: tuple[Modality, ...]
    """Streams to extract; those of `media` are decoded, action units come from `au`."""
    au: AuTask | None = None
    extra_time: float = 0.0
    """Seconds beyond the usual limit that this clip may take."""

    @property
    def name(self) -> str:
        """Name of the clip."""
        return self.media.name


@dataclass
class PreparedClip:
    """A clip with everything that description and encoding need; what failed is in `errors`."""

    name: str
    analysis: AuAnalysis | None = None
    measured: bool = False
    """Whether the analysis is new, and so not on disk yet."""
    media: Media = field(default_factory=Media)
    errors: dict[str, str] = field(default_factory=dict)
    """Stage or stream -> reason."""
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> time it took."""


def prepare_clip(task: ClipTask) -> PreparedClip:
    """Measure the action units of a clip and decode it, as far as its task asks for either."""
    clip = PreparedClip(task.name)
    media = task.media
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if task.au:
            with stopwatch(clip.seconds, "au_json"):
                try:
                    clip.analysis, clip.measured = analyse_clip(task.au, task.name, media.video)
                    media = replace(media, au_info=clip.analysis.au_info)
                except Exception as error:  # whatever a table or a library does on one clip, the others go on
                    clip.errors["au_json"] = reason_of(error)
        if media.sampling == "emotion_peak" and Modality.FRAME in media.streams and clip.analysis is None:
            clip.errors[Modality.FRAME] = "its peak is not known: expected an AU analysis; see the failure at au_json"
            media = replace(media, streams=tuple(stream for stream in media.streams if stream != Modality.FRAME))
        if media.streams:
            clip.media = load_media(media)
            clip.errors |= clip.media.errors
            clip.seconds["decode"] = clip.media.seconds
    clip.warnings = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return clip


def analyse_clip(task: AuTask, name: str, video: Path | None) -> tuple[AuAnalysis, bool]:
    """Return the AU analysis of a clip and whether it is new.

    It is the clip's AU JSON, else made from its OpenFace table, else measured by the AU backend. Raises
    FileNotFoundError when there is nothing to go by.
    """
    sources = task.sources
    if not task.measure:
        return read_au_json(find_au_json(sources.au_root or "", task.dataset, name)), False
    if sources.au_root and not task.remake:
        try:
            return read_au_json(find_au_json(sources.au_root, task.dataset, name)), False
        except FileNotFoundError:
            pass
    if sources.au_backend != "openface":
        if video is None:
            raise FileNotFoundError(
                f"clip {name!r} has no video to measure: expected a file of that name in video_root"
            )
        return measure(sources.au_backend, video), True
    table = sources.openface_table(name)
    if table is None or not table.is_file():
        if sources.openface_executable is None or video is None:
            raise FileNotFoundError(
                f"clip {name!r} has no AU JSON and no OpenFace table (expected {table or 'a folder of tables'}); "
                "give --openface_root, or --openface_executable (or OPENFACE_EXECUTABLE) or another --au_backend to "
                "measure it"
            )
        folder = sources.openface_root or (sources.au_root or Path("output")) / "openface"
        table = run_openface(video, folder, sources.openface_executable, sources.openface_args)
    return analyse_openface(table, source_path=video or table), True


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


def extract_clip(
    video: Path,
    audio: Path | None,
    openface_csv: Path | None,
    sources: Sources,
    specs: dict[Modality, FeatureSpec],
    describe: Describe,
    encoders: Callable[[Modality], Encoder],
    sampling: str = "uniform",
    frame_count: int = 8,
) -> tuple[dict[Modality, np.ndarray], AuAnalysis | None]:
    """Return stream -> [T, D] of one clip, as the stages would store them, and its AU analysis.

    Without a table and without a tool to make one the clip has no AU rows. Raises ValueError when the
    video cannot be read.
    """
    analysis = None
    if Modality.AU in specs or sampling == "emotion_peak":
        analysis = _measure_one(video, openface_csv, sources)
    texts: list[str] = []
    if analysis and not analysis.faceless:
        (analysis,) = describe([(analysis, frames_to_describe(analysis, frame_count, sampling))])
        texts = sentences(analysis)
    task = MediaTask(
        name=video.stem,
        video=video,
        audio=audio or video,
        streams=tuple(stream for stream in specs if stream != Modality.AU),
        frame_count=frame_count,
        sampling=sampling,
        au_info=analysis.au_info if analysis else None,
        clips_per_video=specs[Modality.AUDIO].count if Modality.AUDIO in specs else 8,
    )
    media = load_media(task)  # in this process: whoever waits for one clip can stop it
    if media.errors:
        raise ValueError("; ".join(dict.fromkeys(media.errors.values())))
    measured = analysis.au_info.get("total_frames", 0) if analysis else 0
    if measured and media.num_frames and abs(measured - media.num_frames) > FRAMES_OFF * media.num_frames:
        logger.warning(
            "%s has %d frames, but its OpenFace table %d: is it the table of another clip?",
            video,
            media.num_frames,
            measured,
        )
    features = {}
    for stream in specs:
        encoder = encoders(stream)
        (features[stream],) = encoder([encoder.prepare(texts if stream == Modality.AU else media.items[stream])])
    return features, analysis


def reason_of(error: Exception) -> str:
    """Return what an error says, on one line; with its type where that is not an error of bad clips."""
    text = str(error) if isinstance(error, CLIP_ERRORS) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to the seconds of a stage."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start


def _measure_one(video: Path, openface_csv: Path | None, sources: Sources) -> AuAnalysis | None:
    if openface_csv:
        return analyse_openface(openface_csv, source_path=video)
    if sources.au_backend != "openface":
        return measure(sources.au_backend, video)
    if not sources.openface_executable:
        return None
    with tempfile.TemporaryDirectory() as folder:
        table = run_openface(video, folder, sources.openface_executable, sources.openface_args)
        return analyse_openface(table, source_path=video)
