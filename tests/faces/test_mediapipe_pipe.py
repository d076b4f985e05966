"""MediaPipe in an environment of its own: which one is asked, and what its faults say."""

import threading
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from affect.faces.mediapipe_pipe import ADVICE, VARIABLE, WANTED, ask_mediapipe, mediapipe_version

PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Name a program as the interpreter: it says its version, and does a line of shell when it is to work."""

    def make(work: str = "", version: str = "0.10.21") -> Path:
        program = tmp_path / "python"
        told = f"echo {version}" if version else "exit 1"
        program.write_text(f"#!/bin/sh\ncase $2 in -c) {told};; *) {work};; esac\n")
        program.chmod(0o755)
        monkeypatch.setenv(VARIABLE, str(program))
        return program

    return make


@pytest.mark.parametrize(("version", "found"), [("", "has no mediapipe"), ("0.10.33", "found 0.10.33")])
def test_an_environment_that_will_not_do_says_so_before_any_clip(toy, version, found):
    program = toy(version=version)
    with pytest.raises(ModuleNotFoundError) as error:
        mediapipe_version()
    assert str(program) in str(error.value) and found in str(error.value) and ADVICE in str(error.value)


@pytest.mark.parametrize(
    ("work", "reason"), [("exit 3", "ended with code 3"), ('echo \'{"error": "no libGL"}\'', "no libGL")]
)
def test_a_worker_that_falls_is_one_sentence_each_time(toy, work, reason):
    toy(work)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=reason) as error:
            ask_mediapipe("faces", PICTURE)
        assert "\n" not in str(error.value)


def test_a_worker_that_fell_is_started_again(toy, tmp_path):
    toy(f"test -e {tmp_path}/fell && echo '{{\"found\": []}}' && exec cat >/dev/null; touch {tmp_path}/fell")
    with pytest.raises(RuntimeError):
        ask_mediapipe("faces", PICTURE)
    assert ask_mediapipe("faces", PICTURE) == []


def _ask(answers) -> None:
    answers.put(ask_mediapipe("faces", PICTURE))


def test_neither_threads_nor_forked_processes_share_a_worker(toy):
    toy("read head; echo '{\"found\": '$$'}'; cat >/dev/null")
    answers = get_context("fork").SimpleQueue()
    asked = [threading.Thread(target=_ask, args=(answers,)), get_context("fork").Process(target=_ask, args=(answers,))]
    workers = {ask_mediapipe("faces", PICTURE)}
    for each in asked:
        each.start()
        each.join()
        workers.add(answers.get())
    assert len(workers) == 3


def test_the_advice_is_what_make_does():
    assert f"'{WANTED}'" in (Path(__file__).parents[2] / "Makefile").read_text()


def test_the_mesh_follows_a_face_within_a_clip_only(mediapipe, shared):
    from extractors.media.decode import read_video

    assert mediapipe_version().startswith("0.10.")
    near, far = read_video(shared / "data/video/pyfeat_single_face.mp4").frames([0, 60])
    alone = ask_mediapipe("mesh", far)
    ask_mediapipe("mesh", near)
    followed = ask_mediapipe("mesh", far, first=False)
    assert np.shape(alone) == np.shape(followed) == (478, 3)
    assert followed != alone
    assert ask_mediapipe("mesh", far) == alone
    assert ask_mediapipe("mesh", PICTURE) is None
    assert ask_mediapipe("faces", PICTURE) == []
