"""The driver of the offline stages: raw clips -> AU JSON -> AU sentences -> feature arrays.

What is there already is not made again. One bad clip never stops the others: it goes to the
failure table with the stage and the reason. Decoding runs in worker processes under a time
limit, because video libraries can hang in native code.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from pebble import ProcessExpired, ProcessPool
from rich.progress import track

from affect.au_json import AuAnalysis, au_json_path, find_au_json, read_au_json, require_sentences, write_au_json
from affect.files import atomic_write
from affect.schema import Modality, check_name
from affect.store import FeatureError, FeatureSpec, FeatureStore
from extractors.clip import Describe, Sources, analyse_clip, encoder_input, frames_to_describe
from extractors.encoders import Encoder
from extractors.faces import face_finder_name
from extractors.media import Media, MediaTask, find_audio, find_video, load_media

logger = logging.getLogger(__name__)

STAGES = ("au_json", "au_text", "features")
ENCODER_BATCH = 16
"""Clips that go through an encoder together."""
CLIP_TABLE, FAILURE_TABLE = "clips.csv", "failures.csv"
CLIP_ERRORS = (ValueError, OSError, RuntimeError)
"""What bad clips raise as a rule; the words of these errors say all, others are named with their type."""


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
    """Seconds that decoding one clip may take."""
    overwrite: bool = False


@dataclass
class ClipReport:
    """What became of one clip."""

    name: str
    made: list[str] = field(default_factory=list)
    faceless: bool = False
    reader: str = ""
    seconds: float = 0.0


@dataclass
class RunReport:
    """What became of all clips."""

    clips: dict[str, ClipReport]
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Clip, stage, reason."""

    def fail(self, name: str, stage: str, reason: object) -> None:
        """Note a failure; it also shows at once in the log."""
        reason = " ".join(str(reason).split())
        self.failures.append((name, stage, reason))
        logger.warning("%s: %s failed: %s", name, stage, reason)


def run(plan: Plan, describe: Describe, encoders: Callable[[Modality], Encoder]) -> RunReport:
    """Carry out a plan and write its tables of clips and failures beside the features.

    describe: maker of AU sentences; encoders: stream -> its encoder, asked for only when there is work.
    """
    report = RunReport({name: ClipReport(name) for name in plan.names})
    plan = replace(plan, names=[name for name in plan.names if _is_usable(name, report)])
    analyses = _au_stages(plan, describe, report) if _wants_au(plan) else {}
    if "features" in plan.stages:
        if Modality.AU in plan.specs:
            _au_features(plan, analyses, encoders, report)
        _media_features(plan, analyses, encoders, report)
    _write_tables(plan, report)
    return report


def decode_all(tasks: Iterable[MediaTask], workers: int, time_limit: float) -> Iterator[tuple[MediaTask, Media]]:
    """Decode clips in worker processes, in order; a worker that hangs or dies costs its clip only.

    At most a few clips per worker are held, however many there are.
    """
    with ProcessPool(max_workers=workers, max_tasks=500, context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque = deque()

        def oldest() -> tuple[MediaTask, Media]:
            task, future = waiting.popleft()
            try:
                return task, future.result()
            except FutureTimeoutError:
                reason = f"decoding took longer than {time_limit:g} s; re-encode the clip or raise --time_limit"
            except ProcessExpired as error:
                reason = f"decoding ended its process ({error}); re-encode the clip"
            except Exception as error:  # whatever a library raises on one clip, the others go on
                reason = f"decoding failed: {type(error).__name__}: {error}"
            return task, Media.failed(task, reason)

        for task in tasks:
            waiting.append((task, pool.schedule(load_media, args=[task], timeout=time_limit)))
            if len(waiting) >= 3 * workers:
                yield oldest()
        while waiting:
            yield oldest()


def _is_usable(name: str, report: RunReport) -> bool:
    try:
        check_name(name)
    except ValueError as error:
        report.fail(name, "name", error)
        return False
    return True


def _wants_au(plan: Plan) -> bool:
    return Modality.AU in plan.specs or plan.sampling == "emotion_peak" or "features" not in plan.stages


def _au_stages(plan: Plan, describe: Describe, report: RunReport) -> dict[str, AuAnalysis]:
    """Measure and describe what is not yet; return the analyses that are usable."""
    analyses = {}
    for name in track(plan.names, "action units", disable=len(plan.names) < 20):
        start = time.monotonic()
        stage = "au_json"
        try:
            video = find_video(plan.sources.video_root, name)
            remake = plan.overwrite and "au_json" in plan.stages
            if "au_json" in plan.stages:
                analysis = analyse_clip(plan.sources, plan.dataset, name, video, remake)
            else:
                analysis = read_au_json(find_au_json(plan.sources.au_root or "", plan.dataset, name))
            stage = "au_text"
            undescribed = not (analysis.summary_description or analysis.fine_grained_descriptions)
            if "au_text" in plan.stages and (undescribed or plan.overwrite) and not analysis.faceless:
                analysis = describe(analysis, frames_to_describe(analysis, plan.frame_count, plan.sampling))
                if plan.sources.au_root:
                    write_au_json(analysis, au_json_path(plan.sources.au_root, plan.dataset, name))
                report.clips[name].made.append("au_text")
            analyses[name] = analysis
            report.clips[name].faceless = analysis.faceless
        except Exception as error:  # whatever a table or a language model does on one clip, the others go on
            report.fail(name, stage, error if isinstance(error, CLIP_ERRORS) else f"{type(error).__name__}: {error}")
        report.clips[name].seconds += time.monotonic() - start
    return analyses


def _au_features(
    plan: Plan, analyses: dict[str, AuAnalysis], encoders: Callable[[Modality], Encoder], report: RunReport
) -> None:
    spec = plan.specs[Modality.AU]
    remade = {name for name in analyses if "au_text" in report.clips[name].made}
    missing = set(_to_make(plan, spec, analyses))
    names = [name for name in analyses if name in remade | missing]
    for chunk in _chunks(names, ENCODER_BATCH):
        texts, kept = [], []
        for name in chunk:
            try:
                path = au_json_path(plan.sources.au_root or "", plan.dataset, name)
                texts.append(require_sentences(analyses[name], path))
                kept.append(name)
            except CLIP_ERRORS as error:
                report.fail(name, "au_text", error)
        _encode_and_write(plan, spec, encoders(Modality.AU), kept, texts, report)


def _media_features(
    plan: Plan, analyses: dict[str, AuAnalysis], encoders: Callable[[Modality], Encoder], report: RunReport
) -> None:
    streams = [stream for stream in plan.specs if stream != Modality.AU]
    wanted: dict[str, list[Modality]] = {}
    for stream in streams:
        for name in _to_make(plan, plan.specs[stream], plan.names):
            wanted.setdefault(name, []).append(stream)
    if not wanted:
        return
    if plan.sampling == "emotion_peak":
        for name in [name for name, asked in wanted.items() if Modality.FRAME in asked and name not in analyses]:
            report.fail(
                name, str(Modality.FRAME), "its peak is not known: expected an AU analysis; see the failure above"
            )
            wanted[name].remove(Modality.FRAME)
    tasks = (_media_task(plan, name, asked, analyses.get(name)) for name, asked in wanted.items() if asked)
    decoded = decode_all(tasks, plan.workers, plan.time_limit)
    progress = track(decoded, "features", total=len(wanted), disable=len(wanted) < 20)
    for chunk in _chunks(progress, ENCODER_BATCH):
        for task, media in chunk:
            clip = report.clips[task.name]
            clip.reader = media.reader
            clip.seconds += media.seconds
            for stream, reason in media.errors.items():
                report.fail(task.name, stream, reason)
        for stream in streams:
            ready = [(t.name, m) for t, m in chunk if stream in t.streams and stream not in m.errors]
            names, items = [name for name, _ in ready], [encoder_input(m, stream) for _, m in ready]
            _encode_and_write(plan, plan.specs[stream], encoders(stream), names, items, report)


def _media_task(plan: Plan, name: str, streams: Sequence[Modality], analysis: AuAnalysis | None) -> MediaTask:
    video = find_video(plan.sources.video_root, name)
    return MediaTask(
        name=name,
        video=video,
        audio=find_audio(plan.sources.audio_root, name) or video,
        face_root=plan.sources.face_root,
        streams=tuple(streams),
        frame_count=plan.frame_count,
        sampling=plan.sampling,
        au_info=analysis.au_info if analysis else None,
        face_finder=plan.face_finder,
        clips_per_video=plan.specs[Modality.AUDIO].count if Modality.AUDIO in plan.specs else 8,
    )


def _to_make(plan: Plan, spec: FeatureSpec, names: Iterable[str]) -> list[str]:
    return [name for name in names if plan.overwrite or _stored(plan, spec, name) is None]


def _encode_and_write(
    plan: Plan, spec: FeatureSpec, encoder: Encoder, names: Sequence[str], items: Sequence, report: RunReport
) -> None:
    provenance = encoder.provenance()
    if spec.modality == Modality.FACE:
        provenance["faces_from"] = "face arrays" if plan.sources.face_root else face_finder_name(plan.face_finder)
    for name, array in _encode(encoder, names, items, str(spec.modality), report):
        try:
            plan.store.write(spec, name, array, provenance)
            report.clips[name].made.append(str(spec.modality))
        except CLIP_ERRORS as error:
            report.fail(name, str(spec.modality), error)


def _encode(
    encoder: Encoder, names: Sequence[str], items: Sequence, stage: str, report: RunReport
) -> list[tuple[str, np.ndarray]]:
    """Return name and features of the clips that can be encoded; when a batch fails, its clips are tried one by one."""
    if not names:
        return []
    try:
        return list(zip(names, encoder(list(items)), strict=True))
    except Exception as error:  # whatever a library raises on one clip, the others go on
        if len(names) == 1:
            report.fail(names[0], stage, f"{type(error).__name__}: {error}")
            return []
    return [
        pair
        for name, item in zip(names, items, strict=True)
        for pair in _encode(encoder, [name], [item], stage, report)
    ]


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _write_tables(plan: Plan, report: RunReport) -> None:
    """Bring clips.csv up to date and write failures.csv of this run."""
    path = plan.store.root / CLIP_TABLE
    rows: dict[str, dict[str, object]] = {}
    if path.is_file():
        rows = {row["name"]: row for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")}
    failed = {name for name, _, _ in report.failures}
    for name in plan.names:
        clip = report.clips[name]
        before = rows.get(name, {})
        rows[name] = {
            "name": name,
            "status": "failed" if name in failed else "done",
            "faceless": clip.faceless or _is_empty(plan, Modality.FACE, name, before.get("faceless")),
            "silent": _is_empty(plan, Modality.AUDIO, name, before.get("silent")),
            "reader": clip.reader or before.get("reader", ""),
            "seconds": f"{clip.seconds:.2f}" if clip.made else before.get("seconds", ""),
        }
    _write_table(path, pd.DataFrame(rows.values()))
    _write_table(plan.store.root / FAILURE_TABLE, pd.DataFrame(report.failures, columns=["clip", "stage", "reason"]))


def _is_empty(plan: Plan, stream: Modality, name: str, before: object) -> bool:
    """Whether the stored features of a stream say that the clip has none of it; `before`: what an earlier run said."""
    if stream not in plan.specs:
        return before == "True"
    array = _stored(plan, plan.specs[stream], name)
    return array is not None and len(array) == 0


def _stored(plan: Plan, spec: FeatureSpec, name: str) -> np.ndarray | None:
    """Return the stored features of a clip; None where there are none that are whole."""
    try:
        return plan.store.read(spec, name)
    except FeatureError:
        return None


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_write(path) as handle:
        handle.write(table.to_csv(index=False).encode())
