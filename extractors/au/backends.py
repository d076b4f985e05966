"""Which tool measures action units: OpenFace's tables, landmark geometry, or py-feat."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from affect.core.au_json import AuAnalysis

AU_BACKENDS = ("openface", "mediapipe", "pyfeat")

EXECUTABLE_VARIABLE = "OPENFACE_EXECUTABLE"
"""Environment variable that names OpenFace's FeatureExtraction binary."""

_MODULES = {"mediapipe": "mediapipe", "pyfeat": "feat"}


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
    if backend == "mediapipe":
        from extractors.au.landmarks import analyse_landmarks

        return analyse_landmarks(video)
    if backend == "pyfeat":
        from extractors.au.pyfeat import analyse_pyfeat

        return analyse_pyfeat(video)
    raise ValueError(
        f"AU backend {backend!r} measures no video here: expected one of {', '.join(_MODULES)}; "
        "read its tables with extractors.au.openface"
    )
