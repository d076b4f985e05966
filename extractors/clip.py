"""One clip: its AU analysis, its sentences, and its features as the stages would store them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affect.au_json import AuAnalysis, au_json_path, find_au_json, read_au_json, sentences, write_au_json
from affect.schema import Modality, check_name
from affect.store import FeatureSpec
from extractors.encoders import Encoder
from extractors.media import Media, MediaTask, load_media
from extractors.openface import analyse_openface, run_openface
from extractors.video import frame_indices

logger = logging.getLogger(__name__)

FRAMES_OFF = 0.1
"""Share of a video's frames by which its table may be off before it looks like another clip's."""

Describe = Callable[[AuAnalysis, Sequence[int]], AuAnalysis]
"""A maker of AU sentences for some frames of a clip."""


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


def analyse_clip(sources: Sources, dataset: str, name: str, video: Path | None, overwrite: bool = False) -> AuAnalysis:
    """Return the AU analysis of a clip: its AU JSON, else its OpenFace table, else by running OpenFace.

    A new analysis is written as AU JSON when `sources.au_root` is given. Raises FileNotFoundError when
    there is nothing to go by.
    """
    if sources.au_root and not overwrite:
        try:
            return read_au_json(find_au_json(sources.au_root, dataset, name))
        except FileNotFoundError:
            pass
    table = sources.openface_root / f"{check_name(name)}.csv" if sources.openface_root else None
    if table is None or not table.is_file():
        if sources.openface_executable is None or video is None:
            raise FileNotFoundError(
                f"clip {name!r} has no AU JSON and no OpenFace table (expected {table or 'a folder of tables'}); "
                "give --openface_root, or --openface_executable (or OPENFACE_EXECUTABLE) to measure it"
            )
        folder = sources.openface_root or (sources.au_root or Path("output")) / "openface"
        table = run_openface(video, folder, sources.openface_executable, sources.openface_args)
    analysis = analyse_openface(table, source_path=video or table)
    if sources.au_root:
        write_au_json(analysis, au_json_path(sources.au_root, dataset, name))
    return analysis


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

    Without a table and without OpenFace the clip has no AU rows. Raises ValueError when the video
    cannot be read.
    """
    analysis = None
    wanted = Modality.AU in specs or sampling == "emotion_peak"
    if wanted and openface_csv:
        analysis = analyse_openface(openface_csv, source_path=video)
    elif wanted and sources.openface_executable:
        with tempfile.TemporaryDirectory() as folder:
            table = run_openface(video, folder, sources.openface_executable, sources.openface_args)
            analysis = analyse_openface(table, source_path=video)
    texts: list[str] = []
    if analysis and not analysis.faceless:
        analysis = describe(analysis, frames_to_describe(analysis, frame_count, sampling))
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
    items = {stream: texts if stream == Modality.AU else encoder_input(media, stream) for stream in specs}
    return {stream: encoders(stream)([item])[0] for stream, item in items.items()}, analysis


def encoder_input(media: Media, stream: Modality) -> np.ndarray | None:
    """Return what the encoder of a stream takes from a decoded clip."""
    return {Modality.FRAME: media.frames, Modality.FACE: media.faces, Modality.AUDIO: media.sound}[stream]
