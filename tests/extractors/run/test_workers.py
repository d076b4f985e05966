"""Worker processes: what hangs or dies costs its own clip only."""

import os
import signal
import time
from pathlib import Path

import pytest

from affect.core.schema import Modality
from extractors.au.openface import run_openface
from extractors.run.clip import ClipResult
from extractors.run.session import ClipTask, Settings
from extractors.run.workers import ClipWorkers


def task(name: str, reader: str = "auto", video: Path | None = None) -> ClipTask:
    return ClipTask(Settings(dataset="toy"), name, (Modality.FRAME,), video=video, reader=reader)


def stand_in(task: ClipTask) -> ClipResult:
    """Stands for reading a clip; its name says what the reader does."""
    clip = ClipResult(task)
    if task.name.startswith("hangs") or (task.name.startswith("decord hangs") and task.reader == "auto"):
        time.sleep(600)
    if task.name.startswith("dies"):
        os._exit(3)
    if task.name.startswith("killed") and not task.video.exists():
        task.video.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    clip.reader = task.reader
    return clip


def run_tool(task: ClipTask) -> ClipResult:
    """Stands for measuring a clip with a tool that never returns; the clip's name is its video."""
    video = Path(task.name)
    run_openface(video, video.parent, str(video.parent / "tool"))
    return ClipResult(task)


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.setattr("extractors.run.workers.prepare_clip", stand_in)

    def run(tasks, **settings):
        with ClipWorkers(**{"count": 2, "time_limit": 3, **settings}) as workers:
            return {clip.name: clip for clip in workers.prepare(tasks)}

    return run


def test_a_clip_that_hangs_or_kills_its_worker_costs_only_itself(prepare):
    names = ["x", "hangs", "y", "dies", "z"]
    clips = prepare(task(name, "pyav") for name in names)
    assert set(clips) == set(names)
    assert {name for name, clip in clips.items() if clip.errors} == {"hangs", "dies"}
    assert "longer than 3 s" in clips["hangs"].errors[Modality.FRAME]
    assert clips["hangs"].seconds == {"decode": 6}  # decord would have had its 3 s before PyAV


def test_a_worker_that_is_killed_costs_its_clip_nothing(prepare, tmp_path):
    clips = prepare([task("x"), task("killed", video=tmp_path / "a"), task("killed too", video=tmp_path / "b")])
    assert len(clips) == 3 and not any(clip.errors for clip in clips.values())


def test_what_still_runs_is_ended_when_nobody_waits_for_it(monkeypatch):
    monkeypatch.setattr("extractors.run.workers.prepare_clip", stand_in)
    started = []
    with ClipWorkers(count=2, time_limit=600) as workers:
        start = workers._start
        monkeypatch.setattr(workers, "_start", lambda task: started.append(start(task)) or started[-1])
        clips = workers.prepare([task("hangs"), task("x"), task("hangs too")])
        next(clips)
        clips.close()
        assert [future.cancelled() for future in started] == [True, False, True]


def test_openface_ends_with_the_worker_that_started_it(tmp_path, monkeypatch):
    monkeypatch.setattr("extractors.run.workers.prepare_clip", run_tool)
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/process\nsleep 20\ntouch {tmp_path}/survived\n")
    tool.chmod(0o755)
    (tmp_path / "a.mp4").touch()
    with ClipWorkers(count=1, time_limit=3) as workers:
        (clip,) = workers.prepare([task(str(tmp_path / "a.mp4"), "pyav")])
    assert clip.errors
    process = Path(f"/proc/{(tmp_path / 'process').read_text().strip()}")
    while process.exists():  # it ends of itself, which the next line then finds
        time.sleep(0.05)
    assert not (tmp_path / "survived").exists()
    assert not list(tmp_path.glob(".openface*"))


def test_a_clip_that_hangs_holds_up_no_other(monkeypatch):
    monkeypatch.setattr("extractors.run.workers.prepare_clip", stand_in)
    tasks = [task("hangs", "pyav"), *(task(f"x{i}", "pyav") for i in range(60))]
    with ClipWorkers(count=2, time_limit=20, ahead=4) as workers:
        order = [clip.name for clip in workers.prepare(tasks)]
    assert order[-1] == "hangs"  # all others came while it hung, though only four are held at a time


def test_what_decord_hangs_on_is_read_by_pyav(prepare):
    clips = prepare([task("decord hangs"), task("x")])
    assert not clips["decord hangs"].errors
    assert (clips["decord hangs"].reader, clips["x"].reader) == ("pyav", "auto")


def test_tasks_are_taken_only_as_fast_as_clips_are_taken_away(monkeypatch):
    monkeypatch.setattr("extractors.run.workers.prepare_clip", stand_in)
    taken = []

    def tasks():
        for i in range(50):
            taken.append(i)
            yield task(f"x{i}")

    with ClipWorkers(count=2, time_limit=30, ahead=6) as workers:
        clips = workers.prepare(tasks())
        next(clips)
        assert len(taken) <= 6 + 1
        assert sum(1 for _ in clips) == 49
