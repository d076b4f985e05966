"""What is left to do for a clip: of what is asked, that which is neither stored nor bound to fail as before."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from affect.core.schema import Modality, check_name
from affect.faces.finders import face_array_places
from affect.features.store import FeatureError
from extractors.run.clip import reason_of
from extractors.run.journal import ClipRecord, RunReport
from extractors.run.session import ClipTask, Session, Settings, known_au_json

Failures = Mapping[str, tuple[str, str]]
"""Stage or stream -> reason and fingerprint, as in `ClipRecord`."""


def what_is_left(
    session: Session, name: str, before: Failures | None, report: RunReport
) -> tuple[ClipTask | None, ClipRecord | None]:
    """Return what to do with a clip, if anything, and what to note of it where that is new; the report counts the rest.

    A clip whose files could not be read before is left alone until they, or the settings, change.
    before: its failures in earlier runs; None where no log knows it.
    """
    settings = session.settings
    try:
        if name in session.ambiguous:
            raise ValueError(
                f"{settings.video_root} has two videos of clip {name!r}; expected one file for each name, "
                "so remove or rename the other"
            )
        task, flags = _needed(session, _check_clip_name(name))
    except (ValueError, OSError) as error:  # OSError: longer than the file system allows
        listed = name.encode(errors="backslashreplace").decode()
        return None, ClipRecord(listed, tried=["name"], failures={"name": (reason_of(error), "")})
    if task is not None and before and not (settings.retry_failed or settings.overwrite):
        blocked = {stage for stage, (_, inputs) in before.items() if inputs and inputs == fingerprint(task, stage)}
        task = _without(task, blocked) if blocked else task
        report.left_alone += task is None
        return task, None
    if task is not None:
        return task, None
    report.complete += 1
    cleared = [stage for stage in before or () if stage in settings.parts]
    return None, ClipRecord(name, tried=cleared, **flags) if before is None or cleared else None


def shard(names: Iterable[str], index: int, count: int) -> list[str]:
    """Return the names of one shard of `count`: by a hash, so that a list that grows moves no clip to another shard.

    Raises ValueError for an index that is not in 0..count-1.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}: expected an index from 0 to {count - 1}; correct --shard-index")
    return [name for name in names if zlib.crc32(name.encode(errors="surrogateescape")) % count == index]


def fingerprint(task: ClipTask, stage: str) -> str:
    """Return a short hash of all that could make another attempt at a stage or stream of a clip end otherwise."""
    given = task.settings
    files = [task.video, task.audio, task.table]
    if given.face_root:
        files += face_array_places(given.face_root, task.name)
    settings: tuple = (given.time_limit, given.sampling, given.face_finder, given.au_backend)
    settings += (given.openface_executable, given.openface_args)
    if stage == "au_json":  # of no other stage: a clip whose pictures fail has its AU JSON written all the same
        files.append(known_au_json(given, task.name))
        settings += (given.measures, given.allow_mismatch)
    return hashlib.sha256(repr((settings, [_stamp(path) for path in files])).encode()).hexdigest()[:16]


def _needed(session: Session, name: str) -> tuple[ClipTask | None, dict[str, bool]]:
    """Return the task of all that is missing, None where nothing is; and what the stored features say."""
    settings = session.settings
    stored = {stream: None if settings.overwrite else _stored(session, stream, name) for stream in settings.features}
    asked = tuple(stream for stream, array in stored.items() if array is None)
    au = settings.wants_au and _needs_analysis(settings, name, asked)
    if au or asked:
        return replace(session.task(name, asked, au), measured_by=session.measured_by if au else None), {}
    flags = {"faceless": stored.get(Modality.FACE), "silent": stored.get(Modality.AUDIO)}
    return None, {key: len(array) == 0 for key, array in flags.items() if array is not None}


def _needs_analysis(settings: Settings, name: str, asked: tuple[Modality, ...]) -> bool:
    if Modality.AU in asked or "features" not in settings.stages or settings.overwrite:
        return True
    if Modality.FRAME in asked and settings.sampling == "emotion_peak":
        return True
    return settings.measures and known_au_json(settings, name) is None


def _without(task: ClipTask, blocked: set[str]) -> ClipTask | None:
    """Return what is left of a task without some stages and streams, and without what rests on them."""
    au = task.au and "au_json" not in blocked
    if task.au and not au:
        peaks = {Modality.FRAME} if task.settings.sampling == "emotion_peak" else set()
        blocked = blocked | {Modality.AU} | peaks
    asked = tuple(stream for stream in task.streams if stream not in blocked)
    au = au and _needs_analysis(task.settings, task.name, asked)
    return replace(task, streams=asked, au=au, extra_time=task.extra_time if au else 0.0) if asked or au else None


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status else None


def _check_clip_name(name: str) -> str:
    """Return a name that may become a file's and can be written down (raises ValueError for others)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"clip name {name!r} is not UTF-8; rename the file (convmv does so)") from None
    return check_name(name)


def _stored(session: Session, stream: Modality, name: str) -> np.ndarray | None:
    """Return the stored features of a clip; None where there are none that are whole."""
    try:
        return session.store.read(session.specs[stream], name)
    except FeatureError:
        return None
