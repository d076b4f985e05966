"""The door to the AU backends: names, absent packages, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from extractors.au.backends import check_backend, measure


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="openface, mediapipe, pyfeat"):
        check_backend("dlib")


@pytest.mark.parametrize("name", ["mediapipe", "pyfeat"])
def test_absent_package_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    for ask in (lambda: check_backend(name), lambda: measure(name, Path("a.mp4"))):
        with pytest.raises(ModuleNotFoundError, match=rf"affect\[{name}\]"):
            ask()


def test_openface_needs_no_package_and_measures_no_video(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    check_backend("openface")
    with pytest.raises(ValueError, match="mediapipe, pyfeat"):
        measure("openface", Path("a.mp4"))


def test_measure_asks_the_backend_of_that_name(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    for name, function in (("mediapipe", "landmarks.analyse_landmarks"), ("pyfeat", "pyfeat.analyse_pyfeat")):
        monkeypatch.setattr(f"extractors.au.{function}", lambda video, name=name: (name, video))
        assert measure(name, Path("a.mp4")) == (name, Path("a.mp4"))


def test_importing_the_door_loads_neither_torch_nor_a_backend():
    code = "import sys, extractors.au.backends; sys.exit(bool({'torch', 'mediapipe', 'feat'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
