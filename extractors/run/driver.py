"""The driver of the offline stages: raw clips -> AU JSON -> AU sentences -> feature arrays.

Clips stream through: worker processes measure and decode, this process describes and encodes them in
batches, threads write. What is there already is not made again, one bad clip never stops the others,
and memory does not grow with the number of clips.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import islice

from rich.progress import Progress

from affect.core.failures import Failure
from affect.core.schema import Modality
from extractors.run.clip import ClipResult, ClipTask, log_warnings, stopwatch
from extractors.run.encode import ENCODER_BATCH, describe_clips, encode_clips
from extractors.run.journal import ClipRecord, Journal, RunReport, read_states, tables_locked, write_tables
from extractors.run.planning import Failures, fingerprint, what_is_left
from extractors.run.session import Session
from extractors.run.workers import ClipWorkers
from extractors.run.writing import ClipWriter, TargetError, target_errors

logger = logging.getLogger(__name__)


def run(session: Session, names: Sequence[str], workers: ClipWorkers | None = None) -> RunReport:
    """Extract some clips and bring the tables of clips and failures beside the features up to date.

    workers: a pool to use, by default one for this run. Raises RuntimeError where another process works on the
    same clips, OSError where nothing can be written from the start.
    """
    start = time.monotonic()
    settings, store = session.settings, session.store
    with Journal(store.root, store.writer) as journal:
        earlier = {name: state.failures for name, state in read_states(store.root).items()}
        with nullcontext(workers) if workers else ClipWorkers(settings.workers, settings.time_limit) as pool:
            report = extract(session, names, pool, journal, earlier)
    sum_up(session, names, report)
    clock = report.seconds
    clock["total"] = time.monotonic() - start
    clock["driver"] = clock["total"] - sum(clock.get(stage, 0.0) for stage in ("wait", "au_text", "encode", "write"))
    return report


def extract(
    session: Session, names: Sequence[str], workers: ClipWorkers, journal: Journal, earlier: Mapping[str, Failures]
) -> RunReport:
    """Take clips through all that is left to do, and note it in the journal.

    earlier: clip -> its failures, for all clips that any log knows.
    """
    report, settings, describe = RunReport(len(names)), session.settings, session.describe
    clock = report.seconds
    warned: set[str] = set()
    try:
        with Progress(disable=len(names) < 20 or not settings.progress) as progress, ClipWriter(session) as writer:
            bar = progress.add_task(settings.dataset, total=len(names))

            def tasks() -> Iterator[ClipTask]:
                for name in names:
                    with stopwatch(clock, "check"):
                        task, record = what_is_left(session, name, earlier.get(name), report)
                        if record:
                            _note(record, journal, report)
                    if task:
                        yield task
                    else:
                        progress.advance(bar)

            def note(results: Iterable[ClipResult]) -> None:
                for record in map(_record, results):
                    if record.made or record.failures or earlier.get(record.name, True):
                        _note(record, journal, report)
                    else:  # looked at again, found whole, and in the log already
                        report.complete += 1

            for results in _chunks(_timed(workers.prepare(tasks()), clock, "wait"), ENCODER_BATCH):
                for result in results:
                    result.inputs = _fingerprints(result)
                log_warnings(results, warned)
                with stopwatch(clock, "au_text"):
                    describe_clips(settings, describe, results)
                with stopwatch(clock, "encode"):
                    encode_clips(settings, session.encoder, results)
                    _declare(session, results)
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
    return report


def sum_up(session: Session, names: Sequence[str], report: RunReport) -> None:
    """Write the tables of clips and failures, and list in the report what they say of some clips."""
    root = session.store.root
    states: dict[str, ClipRecord] = {}
    with suppress(*([OSError] if report.stopped else [])), tables_locked(root):
        states = read_states(root)
        write_tables(root, states, session.store.writer)
    states = states or read_states(root)  # a full disk has no room for the lock either
    known = [(name, states[name]) for name in names if name in states]
    report.faceless = [name for name, state in known if state.faceless]
    report.silent = [name for name, state in known if state.silent]
    failures = [
        Failure(name, stage, reason)
        for name, state in known
        for stage, (reason, _) in state.failures.items()
        if stage in session.settings.parts
    ]
    report.failures = list(dict.fromkeys([*failures, *report.failures]))


def _fingerprints(result: ClipResult) -> dict[str, str]:
    """Return what the failures of a clip came from, without those that only follow from another."""
    stages = set(result.errors)
    if "au_json" in stages and result.task.sampling == "emotion_peak":
        stages.discard(Modality.FRAME)
    return {stage: fingerprint(result.task, stage) for stage in stages}


def _declare(session: Session, results: Iterable[ClipResult]) -> None:
    """Say in the store how the new features are made, before several threads write them."""
    with target_errors(str(session.store.root)):
        for stream in dict.fromkeys(stream for result in results for stream in result.features):
            session.store.declare(session.specs[stream], session.provenance(stream))


def _record(result: ClipResult) -> ClipRecord:
    """Return what to write down of a clip that is done."""
    tried = [*(["au_json", "au_text"] if result.task.au else []), *map(str, result.task.streams)]
    failures = {str(stage): (reason, result.inputs.get(stage, "")) for stage, reason in result.errors.items()}
    faces, sound = (result.features.get(stream) for stream in (Modality.FACE, Modality.AUDIO))
    faceless = result.analysis.faceless if result.analysis else None
    if faces is not None:
        faceless = faceless or len(faces) == 0
    silent = None if sound is None else len(sound) == 0
    return ClipRecord(result.name, tried, result.made, failures, faceless, silent, result.reader, result.seconds)


def _note(record: ClipRecord, journal: Journal, report: RunReport) -> None:
    """Write down what became of a clip; failures also show at once in the log."""
    try:
        journal.append(record)
    except OSError as error:
        raise TargetError(f"the log of clips cannot be written ({error}); make room and start again") from error
    report.made.update(record.made)
    report.work_seconds.update(record.seconds)
    for stage, (reason, _) in record.failures.items():
        report.failures.append(Failure(record.name, stage, reason))
        logger.warning("%s: %s failed: %s", record.name, stage, reason)


def _timed(items: Iterable, clock: dict[str, float], stage: str) -> Iterator:
    """Pass items on and count the time that is spent waiting for them."""
    iterator, end = iter(items), object()
    while True:
        with stopwatch(clock, stage):
            item = next(iterator, end)
        if item is end:
            return
        yield item


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
