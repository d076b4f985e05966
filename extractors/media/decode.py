"""One clip, decoded once for every stream that wants it: frames, face crops and sound."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.schema import Modality, check_name
from affect.faces.finders import FaceFinder, build_face_finder, find_faces, load_face_array
from extractors.media.audio import load_audio, sound_clips
from extractors.media.video import frame_indices, read_video

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".webm", ".wmv", ".flv", ".m4v")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg")
FACE_FRAMES = 8
"""Frames that faces are looked for in, whatever the number of scene frames."""


@dataclass(frozen=True)
class MediaTask:
    """What to decode of one clip."""

    name: str
    video: Path | None
    audio: Path | None
    """Sound file, or the video itself."""
    streams: tuple[Modality, ...]
    face_root: Path | None = None
    frame_count: int = 8
    sampling: str = "uniform"
    au_info: Mapping[str, Any] | None = None
    """Peaks of the clip, for emotion_peak sampling."""
    face_finder: str = "auto"
    clips_per_video: int = 8
    reader: str = "auto"
    """auto, or pyav where decord is not to be tried."""
    prepare: Mapping[Modality, Callable[[Any], Any]] = field(default_factory=dict)
    """What the encoder of a stream wants done to a clip before it is sent on; nothing where it is not named."""


@dataclass
class Media:
    """A decoded clip; a stream that failed is in `errors` instead of `items`."""

    items: dict[Modality, Any] = field(default_factory=dict)
    """Stream -> what its encoder takes: pictures uint8 [T, H, W, 3] in RGB (no rows without a face), sound
    float32 [clips, samples] at 16 kHz (None for a clip without sound), as `MediaTask.prepare` left them."""
    num_frames: int = 0
    """Frames of the video; 0 where it was not looked at."""
    reader: str = ""
    """Library that read the video."""
    seconds: float = 0.0
    errors: dict[Modality, str] = field(default_factory=dict)


def find_video(root: Path | None, name: str) -> Path | None:
    """Return the video of a clip under any known suffix, or None."""
    return _find(root, name, VIDEO_SUFFIXES)


def find_audio(root: Path | None, name: str) -> Path | None:
    """Return the sound file of a clip under any known suffix, or None."""
    return _find(root, name, AUDIO_SUFFIXES)


def list_videos(root: Path) -> Counter[str]:
    """Return the names of all clips in a folder, with the number of files that have each (2: `a.mp4` and `a.avi`)."""
    if not root.is_dir():
        return Counter()
    with os.scandir(root) as entries:
        # a hidden file is no clip: macOS puts "._a.mp4" beside "a.mp4" on foreign disks
        paths = [Path(entry.name) for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    return Counter(path.stem for path in paths if path.suffix.lower() in VIDEO_SUFFIXES)


def load_media(task: MediaTask) -> Media:
    """Decode what a task asks for; what fails is in `errors`, the other streams are there."""
    start = time.monotonic()
    media = Media()
    stored_faces = Modality.FACE in task.streams and task.face_root is not None
    seen = [
        stream for stream in task.streams if stream == Modality.FRAME or (stream == Modality.FACE and not stored_faces)
    ]
    with _noting(media, [Modality.AUDIO]):
        if Modality.AUDIO in task.streams:
            media.items[Modality.AUDIO] = _prepared(task, Modality.AUDIO, _sound(task))
    with _noting(media, [Modality.FACE]):
        if stored_faces:
            faces = _uniform(load_face_array(task.face_root, task.name))
            media.items[Modality.FACE] = _prepared(task, Modality.FACE, faces)
    with _noting(media, seen):
        if seen:
            _look(task, seen, media)
    media.seconds = time.monotonic() - start
    return media


def _look(task: MediaTask, seen: Sequence[Modality], media: Media) -> None:
    """Decode the frames that scene and faces need, each once."""
    if task.video is None:
        raise FileNotFoundError(f"clip {task.name!r} has no video: expected a file of that name in --video_root")
    video = read_video(task.video, task.reader)
    scene = frame_indices(video.num_frames, task.frame_count, task.sampling, task.au_info)
    faces = frame_indices(video.num_frames, FACE_FRAMES, "uniform")
    wanted = sorted({*(scene if Modality.FRAME in seen else ()), *(faces if Modality.FACE in seen else ())})
    pictures = dict(zip(wanted, video.frames(wanted), strict=True))
    media.reader, media.num_frames = video.reader, video.num_frames
    if Modality.FRAME in seen:
        frames = np.stack([pictures[index] for index in scene])
        media.items[Modality.FRAME] = _prepared(task, Modality.FRAME, frames)
    if Modality.FACE in seen:
        crops = find_faces(np.stack([pictures[index] for index in faces]), _finder(task.face_finder)).crops
        media.items[Modality.FACE] = _prepared(task, Modality.FACE, crops)


def _prepared(task: MediaTask, stream: Modality, item: Any) -> Any:
    return task.prepare[stream](item) if stream in task.prepare else item


@contextmanager
def _noting(media: Media, streams: Iterable[Modality]) -> Iterator[None]:
    """Note what a bad file raises as the error of `streams`; anything else is a fault of the program."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        media.errors.update(dict.fromkeys(streams, str(error)))


def _sound(task: MediaTask) -> np.ndarray | None:
    if task.audio is None:
        raise FileNotFoundError(
            f"clip {task.name!r} has no sound: expected a file of that name in --audio_root or --video_root"
        )
    wave = load_audio(task.audio)
    return None if wave is None else sound_clips(wave, task.clips_per_video)


def _uniform(faces: np.ndarray) -> np.ndarray:
    return faces[frame_indices(len(faces), FACE_FRAMES, "uniform")] if len(faces) else faces


@cache
def _finder(name: str) -> FaceFinder:
    """One detector a process: building it costs more than using it."""
    return build_face_finder(name)


def _find(root: Path | None, name: str, suffixes: tuple[str, ...]) -> Path | None:
    check_name(name)
    for suffix in suffixes if root else ():
        for spelling in (suffix, suffix.upper(), suffix.title()):
            path = root / f"{name}{spelling}"
            if path.is_file():
                return path
    return None
