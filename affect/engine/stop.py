"""Leaving when asked: SIGTERM, as Slurm and other schedulers send it, and Ctrl-C are answered between steps."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
"""What a process that left on SIGTERM returns, as shells report it: the run is not done, so `&&` goes no further."""


class StopRequest:
    """While entered, SIGTERM sets `asked` instead of ending the process, and so does a first SIGINT (Ctrl-C)."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.asked = self.interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {each: signal.signal(each, self._note) for each in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            logger.info("interrupted: the step is finished and saved first; Ctrl-C again ends at once")
            self.interrupted = True
        self.asked = True


def ignore_signals(worker: int) -> None:
    """Let a data worker live on: every process is signalled, and the step at hand still needs its clips.

    Its own process may still end it. At exit that sends SIGTERM to workers that are left, and waits for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere nothing tells who signals, and workers end
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
