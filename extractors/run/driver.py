"""The driver of the offline stages: raw clips -> AU JSON -> AU sentences -> feature arrays.

Clips stream through: worker processes measure and decode, this process describes and encodes them in
batches, threads write. What is there already is not made again, one bad clip never stops the others,
and memory does not grow with the number of clips.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from types import TracebackType

from rich.progress import Progress

from affect.core.au_json import au_json_path, write_au_json
from affect.core.failures import SHOWN_REASONS, Failure
from affect.core.schema import Modality
from affect.features.provenance import au_makers, first_difference
from extractors.run.clip import (
    CLIP_ERRORS,
    ENCODER_BATCH,
    ClipResult,
    describe_clips,
    encode_clips,
    log_warnings,
    reason_of,
    stopwatch,
)
from extractors.run.journal import ClipRecord, Journal, RunReport, read_states, tables_locked, write_tables
from extractors.run.planning import Failures, fingerprint, what_is_left
from extractors.run.session import ClipTask, Session
from extractors.run.workers import ClipWorkers

logger = logging.getLogger(__name__)

THREADS = 4
AHEAD = 64
"""Most clips that wait to be written."""
_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What the system says when no later clip could be written either."""


def run(session: Session, names: Sequence[str], workers: ClipWorkers | None = None) -> RunReport:
    """Extract some clips and bring the tables of clips and failures beside the features up to date.

    workers: a pool to use, by default one for this run. Raises RuntimeError where another process works on the
    same clips, OSError where nothing can be written from the start.
    """
    start = time.monotonic()
    settings, store = session.settings, session.store
    with Journal(store.root, session.writer) as journal:
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

    earlier: clip -> its failures, for all clips that any log knows. Raises where an encoder lacks its weights.
    """
    report, settings, describe = RunReport(len(names)), session.settings, session.describe
    clock = report.seconds
    warned: set[str] = set()
    for stream in settings.features:  # before any clip: it may lack nothing, and none fails for want of weights
        session.store.check(session.specs[stream], session.provenance(stream))
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
                    encode_clips(session, results)
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
        write_tables(root, states)
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
        for result in results:
            _refuse_other_makers(session, result)
            for stream in result.features:
                session.store.declare(session.specs[stream], session.provenance(stream, result.analysis))


def _refuse_other_makers(session: Session, result: ClipResult) -> None:
    """Take from a clip its AU features where they come from other makers than those that are there, and say so."""
    if Modality.AU not in result.features or session.settings.allow_mismatch:
        return
    found = session.store.provenance(session.specs[Modality.AU]) or {}
    made = au_makers(result.analysis, session.settings.au_encoder)
    if key := first_difference(found, made):
        del result.features[Modality.AU]
        result.errors[Modality.AU] = (
            f"{key} is {made[key]!r} in its AU JSON, but {found[key]!r} in the AU features of other clips; expected "
            "one for all, so make its AU JSON anew, or give --allow_mismatch"
        )


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
    """Write down what became of a clip; the first failure of each kind also shows at once in the log."""
    try:
        journal.append(record)
    except OSError as error:
        raise TargetError(f"the log of clips cannot be written ({error}); make room and start again") from error
    report.made.update(record.made)
    report.work_seconds.update(record.seconds)
    for stage, (reason, _) in record.failures.items():
        report.failures.append(failure := Failure(record.name, stage, reason))
        if failure.kind not in report.told and len(report.told) < SHOWN_REASONS:
            report.told.add(failure.kind)
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


# -- writing -----------------------------------------------------------------------------------


class TargetError(RuntimeError):
    """The place that results go to takes no more."""


class ClipWriter:
    """Threads that write results; results come back, in order, when they are on disk."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._threads = ThreadPoolExecutor(THREADS)
        self._waiting: deque[Future[ClipResult]] = deque()

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def put(self, results: Iterable[ClipResult]) -> Iterator[ClipResult]:
        """Take results to write; yield those that are written. Raises TargetError where nothing can be written."""
        for result in results:
            self._waiting.append(self._threads.submit(write_clip, self._session, result))
        while self._waiting and (len(self._waiting) > AHEAD or self._waiting[0].done()):
            yield self._waiting.popleft().result()

    def drain(self) -> Iterator[ClipResult]:
        """Yield what is left when it is written."""
        while self._waiting:
            yield self._waiting.popleft().result()


def write_clip(session: Session, result: ClipResult) -> ClipResult:
    """Write what is new of a clip and note it; raises TargetError where nothing can be written."""
    settings = session.settings
    with stopwatch(result.seconds, "write"):
        if settings.au_root and (result.measured or "au_text" in result.made):
            with _noting(result, "au_json"):
                path = au_json_path(settings.au_root, settings.dataset, result.name)
                write_au_json(result.analysis, path)
                result.made += ["au_json"] if result.measured else []
        for stream, array in result.features.items():
            with _noting(result, stream):
                rows = array.astype(settings.dtype)
                made = session.provenance(stream, result.analysis)
                session.store.write(session.specs[stream], result.name, rows, made)
                result.made.append(str(stream))
    return result


@contextmanager
def target_errors(what: str) -> Iterator[None]:
    """Raise TargetError naming `what` where the block meets a place that takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in _BROKEN:
            raise
        raise TargetError(
            f"{what} cannot be written ({error}); expected a folder with room and rights to write, so mend that and "
            "start again: what is written stays"
        ) from error


@contextmanager
def _noting(result: ClipResult, stage: str) -> Iterator[None]:
    """Turn what goes wrong while writing into a failure of the clip, or of the whole target."""
    try:
        with target_errors(f"clip {result.name!r}: its {stage}"):
            yield
    except TargetError:
        raise
    except CLIP_ERRORS as error:
        result.errors[str(stage)] = reason_of(error)
