"""Writing finished clips off the main path: AU JSON and features, every file whole or not at all."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType

from affect.core.au_json import au_json_path, write_au_json
from extractors.run.clip import CLIP_ERRORS, ClipResult, reason_of, stopwatch
from extractors.run.session import Session

THREADS = 4
AHEAD = 64
"""Most clips that wait to be written."""
_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What the system says when no later clip could be written either."""


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
                write_au_json(result.analysis, path, session.store.writer)
                result.made += ["au_json"] if result.measured else []
        for stream, array in result.features.items():
            with _noting(result, stream):
                rows = array.astype(settings.dtype)
                session.store.write(session.specs[stream], result.name, rows, session.provenance(stream))
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
