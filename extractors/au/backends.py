"""Which tool measures action units: OpenFace's tables, landmark geometry, or py-feat."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from affect.core.au_json import AuAnalysis
from extractors.au.landmarks import analyse_landmarks
from extractors.au.pyfeat import analyse_pyfeat

AU_BACKENDS = ("openface", "mediapipe", "pyfeat")

_MODULES = {"mediapipe": "mediapipe", "pyfeat": "feat"}
_ANALYSE: dict[str, Callable[[Path], AuAnalysis]] = {"mediapipe": analyse_landmarks, "pyfeat": analyse_pyfeat}


def check_backend(name: str) -> None:
    """Raise ValueError for an unknown AU backend, ModuleNotFoundError for one whose package is absent.

    OpenFace is no Python package; whether its tables or its binary are there shows when they are asked for.
    """
    if name not in AU_BACKENDS:
        raise ValueError(f"AU backend {name!r} is not known: expected one of {', '.join(AU_BACKENDS)}; correct it")
    if name in _MODULES and importlib.util.find_spec(_MODULES[name]) is None:
        raise ModuleNotFoundError(
            f"AU backend {name!r} needs a package that is not installed: pip install 'affect[{name}]', or use openface"
        )


def measure(backend: str, video: Path) -> AuAnalysis:
    """Return the AU analysis of a video by mediapipe or pyfeat, the backends that need nothing but the video.

    Raises as `check_backend`, ValueError for openface, MediaError for a file that is no video, FileNotFoundError
    where weights are missing.
    """
    check_backend(backend)
    if backend not in _ANALYSE:
        raise ValueError(
            f"AU backend {backend!r} measures no video here: expected one of {', '.join(_ANALYSE)}; "
            "read its tables with extractors.au.openface"
        )
    return _ANALYSE[backend](video)
