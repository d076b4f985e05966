"""What is still to be done: which clips a run takes, and which stages and streams of each."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.au_json import find_au_json
from affect.core.schema import Modality, check_name
from affect.features.store import FeatureError, FeatureSpec, FeatureStore
from extractors.media.decode import MediaTask, find_audio, find_video
from extractors.run.clip import AuTask, ClipTask, Sources, reason_of
from extractors.run.journal import ClipRecord, Failure

STAGES = ("au_json", "au_text", "features")
OPENFACE_TIME = 600.0
"""Seconds that OpenFace may take for one clip, beside the time limit of decoding it."""


@dataclass(frozen=True)
class Plan:
    """What to make, from where, to where."""

    dataset: str
    names: Sequence[str]
    sources: Sources
    store: FeatureStore
    specs: dict[Modality, FeatureSpec]
    """Streams to extract -> their features; empty when no features are asked for."""
    stages: tuple[str, ...] = STAGES
    sampling: str = "uniform"
    frame_count: int = 8
    face_finder: str = "auto"
    workers: int = 2
    time_limit: float = 60.0
    """Seconds that measuring and decoding one clip may take."""
    dtype: str = "float32"
    """Numbers that features are stored in: float32 or float16."""
    ambiguous: frozenset[str] = frozenset()
    """Clips that more than one video file is named after."""
    progress: bool = True
    """Whether to draw a progress bar."""
    overwrite: bool = False
    retry_failed: bool = False
    """Try clips again that failed before, even where their files have not changed."""

    @property
    def wants_au(self) -> bool:
        """Whether action units are measured or read at all."""
        return Modality.AU in self.specs or self.sampling == "emotion_peak" or "features" not in self.stages

    @property
    def parts(self) -> set[str]:
        """Stages and streams that a clip of this plan can fail at."""
        return {"name", *(("au_json", "au_text") if self.wants_au else ()), *map(str, self.specs)}


class Planner:
    """Says of each clip what is left to do, from what is stored and what earlier runs met."""

    def __init__(
        self, plan: Plan, earlier: Mapping[str, Mapping[str, Failure]], prepare: Mapping[Modality, Any] | None = None
    ) -> None:
        """earlier: clip -> its failures, for clips that any log knows; prepare: see `MediaTask.prepare`."""
        self.plan = plan
        self.complete = 0
        self.left_alone = 0
        self._earlier = earlier
        self._prepare = dict(prepare or {})

    def task(self, name: str) -> tuple[ClipTask | None, ClipRecord | None]:
        """Return what to do with a clip, if anything, and what to note of it where that is new.

        A clip whose files could not be read before is left alone until they, or the settings, change.
        """
        try:
            if name in self.plan.ambiguous:
                raise ValueError(
                    f"{self.plan.sources.video_root} has two videos of clip {name!r}; expected one file for each name, "
                    "so remove or rename the other"
                )
            task, flags = self._needed(_check_clip_name(name))
        except (ValueError, OSError) as error:  # OSError: longer than the file system allows
            listed = name.encode(errors="backslashreplace").decode()
            return None, ClipRecord(listed, tried=["name"], failures={"name": Failure(reason_of(error))})
        before = self._earlier.get(name)
        if task is not None and before and not (self.plan.retry_failed or self.plan.overwrite):
            blocked = {
                stage
                for stage, failure in before.items()
                if failure.inputs and failure.inputs == fingerprint(self.plan, task, stage)
            }
            if blocked:
                task = self._without(task, blocked)
                self.left_alone += task is None
                if task is None:
                    return None, None
        if task is not None:
            return task, None
        self.complete += 1
        cleared = [stage for stage in before or () if stage in self.plan.parts]
        return None, ClipRecord(name, tried=cleared, **flags) if before is None or cleared else None

    def _needed(self, name: str) -> tuple[ClipTask | None, dict[str, bool]]:
        """Return the task of all that is missing, None where nothing is; and what the stored features say."""
        plan = self.plan
        stored = {
            stream: None if plan.overwrite else _stored(plan.store, spec, name) for stream, spec in plan.specs.items()
        }
        asked = tuple(stream for stream, array in stored.items() if array is None)
        au = None
        if plan.wants_au and self._needs_analysis(name, asked):
            measured = "au_json" in plan.stages
            au = AuTask(plan.sources, plan.dataset, measure=measured, remake=plan.overwrite and measured)
        if au is None and not asked:
            flags = {"faceless": stored.get(Modality.FACE), "silent": stored.get(Modality.AUDIO)}
            return None, {key: len(array) == 0 for key, array in flags.items() if array is not None}
        return self._task(name, asked, au), {}

    def _task(self, name: str, asked: tuple[Modality, ...], au: AuTask | None) -> ClipTask:
        return ClipTask(self._media_task(name, asked), asked, au, self._extra_time(name, au))

    def _needs_analysis(self, name: str, asked: tuple[Modality, ...]) -> bool:
        plan = self.plan
        if Modality.AU in asked or "features" not in plan.stages or plan.overwrite:
            return True
        if Modality.FRAME in asked and plan.sampling == "emotion_peak":
            return True
        return "au_json" in plan.stages and _au_json(plan, name) is None

    def _media_task(self, name: str, asked: tuple[Modality, ...]) -> MediaTask:
        plan = self.plan
        video = find_video(plan.sources.video_root, name)
        return MediaTask(
            name=name,
            video=video,
            audio=find_audio(plan.sources.audio_root, name) or video,
            face_root=plan.sources.face_root,
            streams=tuple(stream for stream in asked if stream != Modality.AU),
            frame_count=plan.frame_count,
            sampling=plan.sampling,
            face_finder=plan.face_finder,
            clips_per_video=plan.specs[Modality.AUDIO].count if Modality.AUDIO in plan.specs else 8,
            prepare=self._prepare,
        )

    def _extra_time(self, name: str, au: AuTask | None) -> float:
        if au is None or not au.measure or not au.sources.openface_executable:
            return 0.0
        table = au.sources.openface_table(name)
        known = (table is not None and table.is_file()) or (not au.remake and _au_json(self.plan, name) is not None)
        return 0.0 if known else OPENFACE_TIME

    def _without(self, task: ClipTask, blocked: set[str]) -> ClipTask | None:
        """Return what is left of a task without some stages and streams, and without what rests on them."""
        au = None if "au_json" in blocked else task.au
        if au is None and task.au is not None:
            blocked = blocked | {Modality.AU} | ({Modality.FRAME} if self.plan.sampling == "emotion_peak" else set())
        asked = tuple(stream for stream in task.asked if stream not in blocked)
        if au and not self._needs_analysis(task.name, asked):
            au = None
        return self._task(task.name, asked, au) if asked or au else None


def shard(names: Iterable[str], index: int, count: int) -> list[str]:
    """Return the names of one shard of `count`: by a hash, so that a list that grows moves no clip to another shard.

    Raises ValueError for an index that is not in 0..count-1.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}: expected an index from 0 to {count - 1}; correct --shard-index")
    return [name for name in names if zlib.crc32(name.encode(errors="surrogateescape")) % count == index]


def fingerprint(plan: Plan, task: ClipTask, stage: str) -> str:
    """Return a short hash of all that could make another attempt at a stage or stream of a clip end otherwise."""
    sources = plan.sources
    files = [task.media.video, task.media.audio, sources.openface_table(task.name)]
    if sources.face_root:
        files += [sources.face_root / f"{task.name}.npy", sources.face_root / task.name / f"{task.name}.npy"]
    settings: tuple = (plan.time_limit, plan.sampling, plan.face_finder, sources.au_backend)
    settings += (sources.openface_executable, sources.openface_args)
    if stage == "au_json":  # of no other stage: a clip whose pictures fail has its AU JSON written all the same
        files.append(_au_json(plan, task.name))
        settings += ("au_json" in plan.stages,)
    return hashlib.sha256(repr((settings, [_stamp(path) for path in files])).encode()).hexdigest()[:16]


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status else None


def _au_json(plan: Plan, name: str) -> Path | None:
    try:
        return find_au_json(plan.sources.au_root or "", plan.dataset, name)
    except FileNotFoundError:
        return None


def _check_clip_name(name: str) -> str:
    """Return a name that may become a file's and can be written down (raises ValueError for others)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"clip name {name!r} is not UTF-8; rename the file (convmv does so)") from None
    return check_name(name)


def _stored(store: FeatureStore, spec: FeatureSpec, name: str) -> np.ndarray | None:
    """Return the stored features of a clip; None where there are none that are whole."""
    try:
        return store.read(spec, name)
    except FeatureError:
        return None
