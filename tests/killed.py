"""Commands in processes of their own that are killed at random moments."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

KILLS = int(os.environ.get("AFFECT_KILLS", "150"))
"""Kills of each command; there are seven."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["affect.tasks.affectgpt", "affect.tasks.au_agent", "affect.tasks.expressions"])


def kill_again_and_again(
    arguments: Callable[[Path], list[str]],
    root: Path,
    results: Callable[[Path], object],
    look: Callable[[Path], None],
    begin: Callable[[Path], object] = Path.mkdir,
    done: str = "",
) -> None:
    """Kill a command at random moments, each time giving it again, until it ends; anew, until there were enough kills.

    arguments: command and its flags, for a folder; begin: makes that folder; look: what must hold after every kill;
    results: what must be the same at the end as without kills; done: what a command says that has nothing left to do.
    """
    root.mkdir()
    begin(calm := root / "calm")
    first = _processes.Process(target=int)  # which waits for the imports that all others share
    first.start()
    first.join()
    began = time.monotonic()
    run(arguments(calm), calm, None, done)
    seconds, expected = time.monotonic() - began, results(calm)
    rng, kills, number = random.Random(root.name), 0, 0
    while kills < KILLS:
        number += 1
        begin(folder := root / f"killed{number}")
        while kills < KILLS and not run(arguments(folder), folder, rng.uniform(0, seconds), done):
            kills, seconds = kills + 1, 1.1 * seconds
            look(folder)
        seconds *= 0.7  # what is left to do takes less time than all
        if kills == KILLS:  # to its end, or once more, for what is finished stays as it is
            run(arguments(folder), folder, None, done)
        look(folder)
        assert results(folder) == expected, f"after {kills} kills, in {folder}"
        shutil.rmtree(folder)
    print(f"{root.name}: {kills} kills, {number} runs")


def run(arguments: list[str], folder: Path, seconds: float | None, done: str) -> bool:
    """Run a command, or kill it after some seconds; return whether it came to its end."""
    log = folder.with_suffix(".log")
    process = _processes.Process(target=_door, args=(arguments, log))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    ended = process.exitcode == 0 or (process.exitcode == 1 and done and done in log.read_text())
    assert ended or process.exitcode == -signal.SIGKILL, log.read_text()[-3000:]
    return ended


def _door(arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from affect.cli import door

    door(arguments[0], arguments[1:])
