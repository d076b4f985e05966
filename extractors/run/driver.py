"""The driver of the offline stages: raw clips -> AU JSON -> AU sentences -> feature arrays.

Clips stream through: worker processes measure and decode, this process describes and encodes them in
batches, threads write. What is there already is not made again, one bad clip never stops the others,
and memory does not grow with the number of clips.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from rich.progress import Progress

from affect.core.au_json import au_json_path, require_sentences
from affect.core.schema import Modality
from affect.faces.finders import face_finder_name
from extractors.encoders import Encoder
from extractors.run.clip import ClipTask, Describe, PreparedClip, frames_to_describe, reason_of, stopwatch
from extractors.run.journal import ClipRecord, ClipState, Failure, Journal, read_states, tables_locked, write_tables
from extractors.run.planning import Plan, Planner, fingerprint
from extractors.run.workers import ClipWorkers
from extractors.run.writing import ClipResult, ClipWriter, TargetError, target_errors

logger = logging.getLogger(__name__)

ENCODER_BATCH = 16
"""Clips that are described and encoded together."""


@dataclass
class RunReport:
    """What one run did, and what is wrong with its clips after it."""

    clips: int
    made: Counter = field(default_factory=Counter)
    """Stage or stream -> clips it was made for."""
    complete: int = 0
    """Clips that had everything before."""
    left_alone: int = 0
    """Clips that failed before and were not tried again."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Clip, stage, reason; those of earlier runs too where they still hold."""
    faceless: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What this process did with its time: wait (for decoded clips), au_text, encode, write (waiting for it), driver
    (all else); and total."""
    work_seconds: Counter = field(default_factory=Counter)
    """What clips took at each stage, added up; workers and writing threads do so side by side."""
    stopped: str = ""
    """Why the run ended before its last clip; empty where it did not."""


Encoders = Callable[[Modality], Encoder]
"""Stream -> its encoder."""


def run(plan: Plan, describe: Describe, encoders: Encoders, workers: ClipWorkers | None = None) -> RunReport:
    """Carry out a plan and bring the tables of clips and failures beside the features up to date.

    describe: maker of AU sentences; workers: a pool to use, by default one for this run. Raises RuntimeError
    where another process works on the same clips, OSError where nothing can be written from the start.
    """
    start = time.monotonic()
    with Journal(plan.store.root, plan.store.writer) as journal:
        earlier = {name: state.failures for name, state in read_states(plan.store.root).items()}
        with nullcontext(workers) if workers else ClipWorkers(plan.workers, plan.time_limit) as pool:
            report = extract(plan, describe, encoders, pool, journal, earlier)
    sum_up(plan, report)
    clock = report.seconds
    clock["total"] = time.monotonic() - start
    clock["driver"] = clock["total"] - sum(clock.get(stage, 0.0) for stage in ("wait", "au_text", "encode", "write"))
    return report


def extract(
    plan: Plan,
    describe: Describe,
    encoders: Encoders,
    workers: ClipWorkers,
    journal: Journal,
    earlier: Mapping[str, Mapping[str, Failure]],
) -> RunReport:
    """Take every clip of a plan through all that is left to do, and note it in the journal.

    earlier: clip -> its failures, for all clips that any log knows.
    """
    report = RunReport(len(plan.names))
    clock = report.seconds
    prepare = {stream: encoders(stream).prepare for stream in plan.specs if stream != Modality.AU}
    planner = Planner(plan, earlier, prepare)
    warned: set[str] = set()
    try:
        with Progress(disable=len(plan.names) < 20 or not plan.progress) as progress, ClipWriter(plan) as writer:
            bar = progress.add_task(plan.dataset, total=len(plan.names))

            def tasks() -> Iterator[ClipTask]:
                for name in plan.names:
                    with stopwatch(clock, "check"):
                        task, record = planner.task(name)
                        if record:
                            _note(record, journal, report)
                    if task:
                        yield task
                    else:
                        progress.advance(bar)

            def note(results: Iterable[ClipResult]) -> None:
                for result in results:
                    record = result.record
                    if record.made or record.failures or earlier.get(record.name, True):
                        _note(record, journal, report)
                    else:  # looked at again, found whole, and in the log already
                        planner.complete += 1

            for chunk in _chunks(_timed(workers.prepare(tasks()), clock, "wait"), ENCODER_BATCH):
                results = [_result(plan, task, clip) for task, clip in chunk]
                _warn_once((text for _, clip in chunk for text in clip.warnings), warned)
                with stopwatch(clock, "au_text"):
                    _describe(plan, results, describe)
                with stopwatch(clock, "encode"):
                    _encode(plan, results, encoders)
                with stopwatch(clock, "write"):
                    note(writer.put(results))
                progress.advance(bar, len(results))
            with stopwatch(clock, "write"):
                note(writer.drain())
    except TargetError as error:
        report.stopped = str(error)
    except KeyboardInterrupt:
        report.stopped = "interrupted; what is written stays, and the same command goes on from there"
    clock["wait"] = clock.get("wait", 0.0) - clock.pop("check", 0.0)  # clips are checked while one is waited for
    report.complete, report.left_alone = planner.complete, planner.left_alone
    return report


def sum_up(plan: Plan, report: RunReport) -> None:
    """Write the tables of clips and failures, and list in the report what they say of this plan's clips."""
    root = plan.store.root
    states: dict[str, ClipState] = {}
    with suppress(*([OSError] if report.stopped else [])), tables_locked(root):
        states = read_states(root)
        write_tables(root, states, plan.store.writer)
    states = states or read_states(root)  # a full disk has no room for the lock either
    known = [(name, states[name]) for name in plan.names if name in states]
    report.faceless = [name for name, state in known if state.faceless]
    report.silent = [name for name, state in known if state.silent]
    failures = [
        (name, stage, failure.reason)
        for name, state in known
        for stage, failure in state.failures.items()
        if stage in plan.parts
    ]
    report.failures = list(dict.fromkeys([*failures, *report.failures]))


def _result(plan: Plan, task: ClipTask, clip: PreparedClip) -> ClipResult:
    """Return a clip as the worker left it, with its failures noted."""
    tried = [*(["au_json", "au_text"] if task.au else []), *map(str, task.asked)]
    record = ClipRecord(clip.name, tried, reader=clip.media.reader, seconds=clip.seconds)
    result = ClipResult(task, clip, record, clip.analysis, clip.measured)
    for stage, reason in clip.errors.items():
        follows = stage == Modality.FRAME and plan.sampling == "emotion_peak" and "au_json" in clip.errors
        result.fail(stage, reason, "" if follows else fingerprint(plan, task, stage))
    if clip.analysis:
        record.faceless = clip.analysis.faceless
    return result


def _describe(plan: Plan, results: Sequence[ClipResult], describe: Describe) -> None:
    """Give sentences to the clips that lack them."""
    clips: list[tuple[ClipResult, list[int]]] = []
    for result in results:
        analysis = result.analysis
        if "au_text" not in plan.stages or analysis is None or analysis.faceless:
            continue
        if plan.overwrite or not (analysis.summary_description or analysis.fine_grained_descriptions):
            try:
                clips.append((result, frames_to_describe(analysis, plan.frame_count, plan.sampling)))
            except ValueError as error:
                result.fail("au_text", reason_of(error))
    items = [(result.analysis, frames) for result, frames in clips]
    for (result, _), analysis in zip(
        clips, _all_or_each("au_text", describe, [result for result, _ in clips], items), strict=True
    ):
        if analysis is not None:
            result.analysis, result.analysis_is_new = analysis, True
            result.record.made.append("au_text")


def _encode(plan: Plan, results: Sequence[ClipResult], encoders: Encoders) -> None:
    """Make the features that are asked for, each stream of all clips together."""
    for stream in plan.specs:
        ready: list[ClipResult] = []
        items: list[Any] = []
        for result in results:
            if stream == Modality.AU:
                item = _sentences(plan, result)
            else:
                item = result.prepared.media.items.get(stream, _NOTHING)
            if item is not _NOTHING:
                ready.append(result)
                items.append(item)
        if not ready:
            continue
        encoder = encoders(stream)
        provenance = _provenance(plan, stream, encoder)
        with target_errors(str(plan.store.root)):
            plan.store.declare(plan.specs[stream], provenance)  # before several threads write beside it
        for result, array in zip(ready, _all_or_each(stream, encoder, ready, items), strict=True):
            if array is not None:
                result.features[stream] = (array, provenance)
                _look(result.record, stream, array)


_NOTHING = object()
"""Stands for a stream that is not asked for or failed; None is a clip without sound."""


def _sentences(plan: Plan, result: ClipResult) -> Any:
    """Return the sentences whose features are asked for or out of date."""
    if result.analysis is None or "au_text" in result.record.failures:
        return _NOTHING
    if Modality.AU not in result.task.asked and "au_text" not in result.record.made:
        return _NOTHING
    try:
        return require_sentences(
            result.analysis, au_json_path(plan.sources.au_root or "", plan.dataset, result.record.name)
        )
    except ValueError as error:
        result.fail("au_text", reason_of(error))
        return _NOTHING


def _look(record: ClipRecord, stream: Modality, array: np.ndarray) -> None:
    """Note whether a clip shows a face and has sound."""
    if stream == Modality.AUDIO:
        record.silent = len(array) == 0
    if stream == Modality.FACE:
        record.faceless = record.faceless or len(array) == 0


def _all_or_each(stage: str, make: Callable[[list], list], results: Sequence[ClipResult], items: Sequence) -> list:
    """Return what is made of each item, all at once; when that fails, one by one, with None for those that fail.

    The time it takes is shared out to the clips.
    """
    clock = "au_text" if stage == "au_text" else "encode"
    if not items:
        return []
    start = time.monotonic()
    try:
        made = list(make(list(items)))
    except Exception as error:  # whatever a library raises on one clip, the others go on
        if len(items) > 1:
            return [_all_or_each(stage, make, [result], [item])[0] for result, item in zip(results, items, strict=True)]
        results[0].fail(stage, reason_of(error))
        made = [None]
    share = (time.monotonic() - start) / len(items)
    for result in results:
        result.record.seconds[clock] = result.record.seconds.get(clock, 0.0) + share
    return made


def _provenance(plan: Plan, stream: Modality, encoder: Encoder) -> dict[str, Any]:
    provenance = {**encoder.provenance(), "dtype": plan.dtype}
    if stream == Modality.FACE:
        provenance["faces_from"] = "face arrays" if plan.sources.face_root else face_finder_name(plan.face_finder)
    return provenance


def _note(record: ClipRecord, journal: Journal, report: RunReport) -> None:
    """Write down what became of a clip; failures also show at once in the log."""
    try:
        journal.append(record)
    except OSError as error:
        raise TargetError(f"the log of clips cannot be written ({error}); make room and start again") from error
    report.made.update(record.made)
    report.work_seconds.update(record.seconds)
    for stage, failure in record.failures.items():
        report.failures.append((record.name, stage, failure.reason))
        logger.warning("%s: %s failed: %s", record.name, stage, failure.reason)


def _warn_once(texts: Iterable[str], warned: set[str]) -> None:
    for text in texts:
        if text not in warned:
            warned.add(text)
            logger.warning("%s", text)


def _timed(items: Iterable, clock: dict[str, float], stage: str) -> Iterator:
    """Pass items on and count the time that is spent waiting for them."""
    iterator = iter(items)
    while True:
        with stopwatch(clock, stage):
            item = next(iterator, _NOTHING)
        if item is _NOTHING:
            return
        yield item


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
