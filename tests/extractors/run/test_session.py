"""AU backends: names, absent packages, and what importing them costs; which files of a folder are clips."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from affect.core.schema import Modality
from affect.features.store import FeatureSpec
from extractors.run import session
from extractors.run.clip import analyse_clip
from extractors.run.session import ClipTask, Session, Settings, check_backend, find_video, list_clips


def _measure(backend: str):
    settings = Settings(dataset="d", au_backend=backend)
    return analyse_clip(ClipTask(settings, "a", (), True, video=Path("a.mp4")))


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="openface, mediapipe, pyfeat"):
        check_backend("dlib")


@pytest.mark.parametrize(("name", "advice"), [("mediapipe", "pip install 'mediapipe"), ("pyfeat", r"affect\[pyfeat\]")])
def test_absent_package_says_what_to_install(name, advice, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    for ask in (lambda: check_backend(name), lambda: _measure(name)):
        with pytest.raises(ModuleNotFoundError, match=advice):
            ask()


def test_openface_needs_no_package_and_measures_no_video(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    check_backend("openface")
    with pytest.raises(FileNotFoundError, match="another --au_backend"):
        _measure("openface")


def test_measure_asks_the_backend_of_that_name(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    monkeypatch.setattr(session, "mediapipe_version", lambda: "0.10.21")
    for name, function in (("mediapipe", "landmarks.analyse_landmarks"), ("pyfeat", "pyfeat.analyse_pyfeat")):
        monkeypatch.setattr(f"extractors.au.{function}", lambda video, name=name: (name, video))
        assert _measure(name) == ((name, Path("a.mp4")), True)


def test_importing_the_session_loads_neither_torch_nor_a_backend():
    code = "import sys, extractors.run.session; sys.exit(bool({'torch', 'mediapipe', 'feat'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.parametrize("begun, goes_on", [("float32", "float32"), ("bfloat16", None)])
def test_a_folder_that_began_in_float32_goes_on_in_it_on_a_card(tmp_path, begun, goes_on):
    settings = Settings(dataset="toy", save_root=tmp_path, device="cuda", streams=(Modality.AUDIO,))
    Session(settings).store.declare(FeatureSpec(Modality.AUDIO, "HUBERT_LARGE", 4), {"precision": begun})
    built = []
    Session(settings, build=lambda *how: built.append(how)).encoder(Modality.AUDIO)
    Session(replace(settings, precision="float16"), build=lambda *how: built.append(how)).encoder(Modality.AUDIO)
    assert built == [("audio", "HUBERT_LARGE", "cuda", precision) for precision in (goes_on, "float16")]


def test_hidden_files_and_folders_are_no_clips(tmp_path):
    for name in ("a.mp4", "._a.mp4", ".mp4", "a.b.MOV", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert list_clips(tmp_path) == {"a": 1, "a.b": 1}
    assert list_clips(tmp_path / "absent") == {}


def test_every_clip_that_is_listed_is_found_whatever_the_case_of_its_suffix(tmp_path):
    for name in ("a.mp4", "b.MP4", "c.Mp4", "d.e.Mov"):
        (tmp_path / name).touch()
    listed = list_clips(tmp_path)
    assert set(listed) == {"a", "b", "c", "d.e"}
    assert all(find_video(tmp_path, name) for name in listed)


def test_two_files_of_one_name_are_counted(tmp_path):
    for name in ("a.mp4", "a.AVI", "b.mp4"):
        (tmp_path / name).touch()
    assert list_clips(tmp_path) == {"a": 2, "b": 1}


def test_a_link_that_leads_nowhere_is_a_clip_without_a_video(tmp_path):
    for name, to in (("loop", "loop.mp4"), ("gone", "nowhere")):
        (tmp_path / f"{name}.mp4").symlink_to(to)
    assert list_clips(tmp_path) == {"loop": 1, "gone": 1}
    assert find_video(tmp_path, "loop") is find_video(tmp_path, "gone") is None
