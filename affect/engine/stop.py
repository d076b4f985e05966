"""Leaving when asked: SIGTERM, as Slurm and other schedulers send it, is noted and answered between steps."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
"""What a process that left on SIGTERM returns, as shells report it: the run is not done, so `&&` goes no further."""


class StopRequest:
    """While entered, SIGTERM sets `asked` instead of ending the process."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


def ignore_sigterm(worker: int) -> None:
    """Let a data worker live on: schedulers signal every process, and the step at hand still needs its clips.

    Its own process may still end it. At exit that sends SIGTERM to workers that are left, and waits for them.
    """
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere nothing tells who signals, and workers end
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
