"""Worker processes that prepare clips under a time limit, because video libraries can hang in native code."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from types import TracebackType

import cv2
from pebble import ProcessExpired, ProcessPool

from affect.core.schema import Modality
from extractors.run.clip import ClipResult, prepare_clip, reason_of
from extractors.run.session import ClipTask

CLIPS_PER_PROCESS = 500
"""Clips after which a worker is replaced, so that what libraries leak stays bounded."""


class ClipWorkers:
    """A pool of processes for `prepare_clip`; a worker that hangs, or dies twice of a clip, costs that clip only.

    time_limit: seconds that one clip may take; ahead: most clips that are held, waiting, running or done.
    """

    def __init__(self, count: int, time_limit: float, ahead: int = 32) -> None:
        self._time_limit = time_limit
        self._ahead = max(ahead, 2 * count)
        self._pool = ProcessPool(
            max_workers=count,
            max_tasks=CLIPS_PER_PROCESS,
            initializer=_set_up,
            initargs=[os.getpid()],
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> ClipWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._pool.close()
        else:
            self._pool.stop()
        self._pool.join()

    def prepare(self, tasks: Iterable[ClipTask]) -> Iterator[ClipResult]:
        """Yield what comes of every task, as they come: a slow clip holds up no other.

        What is still running when the caller takes no more is ended.
        """
        running: dict[Future, ClipTask] = {}
        try:
            yield from self._prepare(iter(tasks), running)
        finally:
            for future in running:
                future.cancel()

    def _prepare(self, tasks: Iterator[ClipTask], running: dict[Future, ClipTask]) -> Iterator[ClipResult]:
        died: set[str] = set()
        while True:
            while len(running) < self._ahead and (task := next(tasks, None)) is not None:
                running[self._start(task)] = task
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                try:
                    clip = future.result()
                except FutureTimeoutError:
                    if task.seen and task.reader == "auto":  # decord may hang
                        again = replace(task, reader="pyav")
                        running[self._start(again)] = again
                        continue
                    limit = self._time_limit + task.extra_time
                    clip = _failed(task, f"it took longer than {limit:g} s; re-encode the clip or raise --time_limit")
                    clip.seconds["decode"] = limit if task.reader == "auto" else 2 * limit  # decord's time first
                except ProcessExpired as error:
                    if task.name not in died:  # it may have been in the way of somebody who wanted its memory
                        died.add(task.name)
                        running[self._start(task)] = task
                        continue
                    clip = _failed(task, f"decoding ended its process twice ({error}); re-encode the clip")
                except Exception as error:  # whatever a library raises on one clip, the others go on
                    clip = _failed(task, reason_of(error))
                yield clip

    def _start(self, task: ClipTask) -> Future:
        return self._pool.schedule(_work, args=[prepare_clip, task], timeout=self._time_limit + task.extra_time)


def _failed(task: ClipTask, reason: str) -> ClipResult:
    """Return a clip of which everything failed for one reason."""
    decoded = [stream for stream in task.streams if stream != Modality.AU]
    return ClipResult(task, errors=dict.fromkeys([*(["au_json"] if task.au else []), *decoded], reason))


def _work(prepare: Callable[[ClipTask], ClipResult], task: ClipTask) -> ClipResult:
    """Prepare a clip in a worker; when that is told to stop, end, after whatever cleans up behind itself did."""
    # an exception and no sudden end: OpenFace is a process of its own, and whoever started it has to stop it
    idle = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return prepare(task)
    except SystemExit:
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, idle)


def _set_up(parent: int) -> None:
    """Keep this worker to one processor, and end it soon after its parent, even while it hangs in native code."""
    cv2.setNumThreads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
