"""Writing finished clips off the main path: AU JSON and features, every file whole or not at all."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from affect.core.au_json import AuAnalysis, au_json_path, write_au_json
from affect.core.schema import Modality
from extractors.run.clip import CLIP_ERRORS, ClipTask, PreparedClip, reason_of, stopwatch
from extractors.run.journal import ClipRecord, Failure
from extractors.run.planning import Plan

THREADS = 4
AHEAD = 64
"""Most clips that wait to be written."""
_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What the system says when no later clip could be written either."""


class TargetError(RuntimeError):
    """The place that results go to takes no more."""


@dataclass
class ClipResult:
    """A clip in the hands of the driver: its task, what the worker made of it, and what came of that."""

    task: ClipTask
    prepared: PreparedClip
    record: ClipRecord
    analysis: AuAnalysis | None = None
    analysis_is_new: bool = False
    """Whether it differs from what is on disk."""
    features: dict[Modality, tuple[np.ndarray, dict[str, Any]]] = field(default_factory=dict)
    """Stream -> [T, D] and its provenance."""

    def fail(self, stage: str, reason: str, inputs: str = "") -> None:
        """Note a failure."""
        self.record.failures[str(stage)] = Failure(reason, inputs)


class ClipWriter:
    """Threads that write results; results come back, in order, when they are on disk."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._threads = ThreadPoolExecutor(THREADS)
        self._waiting: deque[Future[ClipResult]] = deque()

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def put(self, results: Iterable[ClipResult]) -> Iterator[ClipResult]:
        """Take results to write; yield those that are written. Raises TargetError where nothing can be written."""
        for result in results:
            self._waiting.append(self._threads.submit(write_clip, self._plan, result))
        while self._waiting and (len(self._waiting) > AHEAD or self._waiting[0].done()):
            yield self._waiting.popleft().result()

    def drain(self) -> Iterator[ClipResult]:
        """Yield what is left when it is written."""
        while self._waiting:
            yield self._waiting.popleft().result()


def write_clip(plan: Plan, result: ClipResult) -> ClipResult:
    """Write what is new of a clip and note it in its record; raises TargetError where nothing can be written."""
    record = result.record
    with stopwatch(record.seconds, "write"):
        if result.analysis_is_new and plan.sources.au_root:
            with _noting(result, "au_json"):
                path = au_json_path(plan.sources.au_root, plan.dataset, record.name)
                write_au_json(result.analysis, path, plan.store.writer)
                record.made += ["au_json"] if result.prepared.measured else []
        for stream, (array, provenance) in result.features.items():
            with _noting(result, stream):
                plan.store.write(plan.specs[stream], record.name, array.astype(plan.dtype), provenance)
                record.made.append(str(stream))
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
        with target_errors(f"clip {result.record.name!r}: its {stage}"):
            yield
    except TargetError:
        raise
    except CLIP_ERRORS as error:
        result.fail(stage, reason_of(error))
