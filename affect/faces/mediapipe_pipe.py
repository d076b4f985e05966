"""MediaPipe in an environment of its own, asked over a pipe.

The last releases that ship their models need NumPy 1 and bring a second OpenCV, so they cannot stand beside the rest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement

VARIABLE = "AFFECT_MEDIAPIPE_PYTHON"
"""Environment variable that names the interpreter of the environment that has mediapipe."""
WANTED = "mediapipe>=0.10.14,<=0.10.21"
ADVICE = (
    f"make an environment of its own: python3 -m venv .venv-mediapipe && .venv-mediapipe/bin/pip install '{WANTED}' "
    f"(make mediapipe does so), then export {VARIABLE}=$PWD/.venv-mediapipe/bin/python"
)
_WORKER = Path(__file__).with_name("mediapipe_worker.py")
_VERSION = "import importlib.metadata as m; print(m.version('mediapipe'))"


def has_mediapipe() -> bool:
    """Whether an interpreter with mediapipe is named, or this one has it."""
    return bool(os.environ.get(VARIABLE)) or importlib.util.find_spec("mediapipe") is not None


def mediapipe_version() -> str:
    """Return the version of mediapipe that is asked; raises ModuleNotFoundError where there is none that will do."""
    if not has_mediapipe():
        raise ModuleNotFoundError(f"mediapipe is not installed: {ADVICE}")
    return _version(_python())


def ask_mediapipe(ask: str, picture: np.ndarray, first: bool = True) -> Any:
    """Return what is found in an RGB picture uint8 [H, W, 3], in shares of its width and height.

    ask: `faces` gives [left, top, width, height, score] of each, `mesh` the 478 points [x, y, z] of one or None.
    first: whether the picture begins a clip; the mesh follows a face through the pictures of one.
    Raises RuntimeError where mediapipe fails, ModuleNotFoundError as `mediapipe_version`.
    """
    mediapipe_version()
    worker = _worker(_python(), os.getpid(), threading.get_ident())
    try:
        head = {"ask": ask, "shape": picture.shape, "first": first}
        worker.stdin.write(json.dumps(head).encode() + b"\n")
        worker.stdin.write(np.ascontiguousarray(picture))
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # it has said why, or tells by its end that it fell
    line = worker.stdout.readline()
    answer = json.loads(line) if line else {"error": f"it ended with code {worker.wait()}"}
    if "error" in answer:
        _worker.cache_clear()
        raise RuntimeError(f"mediapipe of {_python()} failed ({answer['error']}); {ADVICE}")
    return answer["found"]


def _python() -> str:
    return os.environ.get(VARIABLE) or sys.executable


@lru_cache
def _version(python: str) -> str:
    binary = shutil.which(python)
    run = subprocess.run([binary, "-I", "-c", _VERSION], capture_output=True, text=True) if binary else None
    if run is None or run.returncode:
        lack = "has no mediapipe" if run else "is no program"
        raise ModuleNotFoundError(f"{python} {lack}: {ADVICE}")
    version = run.stdout.strip()
    if version not in Requirement(WANTED).specifier:
        raise ModuleNotFoundError(f"{python}: expected {WANTED}, found {version}: {ADVICE}")
    return version


@lru_cache
def _worker(python: str, process: int, thread: int) -> subprocess.Popen:
    """Start a process for one thread of one process: who is forked must not share a pipe. It ends with its pipe."""
    return subprocess.Popen(
        [python, "-I", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
