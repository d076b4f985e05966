"""What the driver finds left to do for a clip, from what is stored, what failed before and what the settings ask."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affect.core.au_json import AuAnalysis, au_json_path, write_au_json
from affect.core.schema import STORED_MODALITIES, Modality
from extractors.run.journal import RunReport
from extractors.run.planning import fingerprint, what_is_left
from extractors.run.session import OPENFACE_TIME, Session, Settings

AU, AUDIO, FACE, FRAME = Modality.AU, Modality.AUDIO, Modality.FACE, Modality.FRAME
ALL = STORED_MODALITIES
PEAK = {"sampling": "emotion_peak"}
FEATURES = {"stages": ("features",)}


class ToyEncoder:
    dim = 4
    prepare = staticmethod(lambda item: item)


@pytest.fixture
def world(tmp_path):
    """Make a session over clip a, with files of its own, AU JSON and some streams stored as they are asked for."""
    folders = {f"{kind}_root": tmp_path / kind for kind in ("video", "audio", "openface", "au", "save")}
    files = {"video": "a.mp4", "audio": "a.wav", "openface": "a.csv"}
    for kind, file in files.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / file).write_text(kind)

    def make(stored=(), json=False, rows=1, **settings) -> Session:
        given = Settings(dataset="toy", **{**folders, **settings})
        session = Session(given, "0of1", build=lambda *_: ToyEncoder())
        for stream, spec in Session(
            replace(given, stages=("features",), streams=ALL), build=session._build
        ).specs.items():
            if stream in stored:
                session.store.write(spec, "a", np.eye(rows, 4, dtype=np.float32), {})
        if json:
            write_au_json(AuAnalysis(au_info={"total_frames": 3}), au_json_path(tmp_path / "au", "toy", "a"))
        return session

    return make


def left(session, before=None):
    """Streams and action units that are left, None where nothing is; what is noted; and what was counted."""
    report = RunReport(1)
    task, record = what_is_left(session, "a", before, report)
    return task and (set(task.streams), task.au), record, (report.complete, report.left_alone)


def but(*streams):
    return set(ALL) - set(streams)


@pytest.mark.parametrize(
    ("stored", "json", "settings", "needed"),
    [
        ((), False, {}, (set(ALL), True)),
        (ALL, True, {}, None),
        (ALL, False, {}, (set(), True)),
        (ALL, False, FEATURES, None),
        (ALL, True, {"overwrite": True}, (set(ALL), True)),
        (but(AUDIO), True, {}, ({AUDIO}, False)),
        (but(AUDIO), False, {}, ({AUDIO}, True)),
        (but(AUDIO), False, FEATURES, ({AUDIO}, False)),
        (but(AUDIO), True, PEAK, ({AUDIO}, False)),
        (but(AU), True, {}, ({AU}, True)),
        (but(AU), False, FEATURES, ({AU}, True)),
        (but(FRAME), True, {}, ({FRAME}, False)),
        (but(FRAME), True, PEAK, ({FRAME}, True)),
        (but(FRAME), False, {**PEAK, **FEATURES}, ({FRAME}, True)),
        ((), True, {"streams": (AUDIO,), **PEAK}, ({AUDIO}, False)),
        ((), False, {"streams": (FRAME,)}, ({FRAME}, False)),
        ((), False, {"streams": (FRAME,), "overwrite": True}, ({FRAME}, False)),
        ((), True, {"streams": (AUDIO, AU), "overwrite": True, **FEATURES}, ({AUDIO, AU}, True)),
        (ALL, True, {"stages": ("au_json",)}, (set(), True)),
        (ALL, True, {"stages": ("au_text",)}, (set(), True)),
    ],
)
def test_only_what_is_missing_is_made(world, stored, json, settings, needed):
    assert left(world(stored, json, **settings))[0] == needed


@pytest.mark.parametrize(
    ("before", "settings", "noted"),
    [
        (None, {}, []),
        ({}, {}, None),
        ({"audio": ("x", "1f")}, {}, ["audio"]),
        ({"au_json": ("x", ""), "name": ("x", "")}, {}, ["au_json", "name"]),
        ({"face": ("x", "1f")}, {"streams": (AUDIO,)}, None),
    ],
)
def test_a_clip_that_has_everything_is_complete_and_noted_where_that_is_new(world, before, settings, noted):
    for rows in (0, 2):
        needed, record, counts = left(world(ALL, True, rows, **settings), before)
        assert (needed, counts) == (None, (1, 0))
        assert (record and record.tried) == noted
        if noted is not None:
            assert (record.name, record.silent) == ("a", rows == 0)
            assert record.faceless == (rows == 0)


@pytest.mark.parametrize(
    ("failed", "json", "settings", "needed"),
    [
        (["frame"], False, {}, (but(FRAME), True)),
        (["au_json"], False, {}, (but(AU), False)),
        (["au_json"], False, PEAK, ({FACE, AUDIO}, False)),
        (["au_json", "frame", "face", "audio"], False, {}, None),
        (["frame"], True, {"streams": (FRAME,), **PEAK}, None),
        (["frame"], False, {"streams": (FRAME,), **PEAK}, (set(), True)),
        (["audio"], False, {"streams": (AUDIO,)}, None),
        (["frame"], False, {"retry_failed": True}, (set(ALL), True)),
        (["frame"], False, {"overwrite": True}, (set(ALL), True)),
    ],
)
def test_what_failed_is_left_alone_with_all_that_rests_on_it_until_something_changes(
    world, failed, json, settings, needed
):
    session = world(json=json, openface_executable="FeatureExtraction", **settings)
    task, _ = what_is_left(session, "a", None, RunReport(1))
    before = {stage: ("it is broken", fingerprint(task, stage)) for stage in failed}
    assert left(session, before) == (needed, None, (0, int(needed is None)))
    for inputs in ("", "another"):
        changed = dict.fromkeys(failed, ("it is broken", inputs))
        assert left(session, changed) == ((set(task.streams), task.au), None, (0, 0))


def test_time_for_openface_is_given_only_where_it_is_to_run(world):
    session = world(openface_executable="FeatureExtraction", openface_root=None)
    task, _ = what_is_left(session, "a", None, RunReport(1))
    for failed, seconds in (("frame", OPENFACE_TIME), ("au_json", 0.0)):
        rest, _ = what_is_left(session, "a", {failed: ("x", fingerprint(task, failed))}, RunReport(1))
        assert rest.extra_time == seconds


def test_a_clip_of_two_videos_is_a_failure_of_its_name(world, tmp_path):
    (tmp_path / "video/a.avi").touch()
    needed, record, counts = left(world())
    assert (needed, counts) == (None, (0, 0))
    assert (record.name, record.tried, record.failures.keys()) == ("a", ["name"], {"name"})


def _stage(stage: str, file: str | None = None, **settings):
    return pytest.param(stage, file, settings, id=" ".join([stage, file or "", *settings]))


@pytest.mark.parametrize(
    ("stage", "file", "settings"),
    [
        *[_stage(stage, file) for stage in ("frame", "au_json") for file in ("video/a.mp4", "audio/a.wav")],
        _stage("frame", "openface/a.csv"),
        _stage("face", "faces/a.npy"),
        _stage("face", "faces/a/a.npy"),
        _stage("au_json", "json"),
        _stage("frame", time_limit=1.0),
        _stage("frame", sampling="headtail"),
        _stage("face", face_finder="opencv"),
        _stage("au_json", au_backend="pyfeat"),
        _stage("au_json", openface_executable="other"),
        _stage("frame", openface_args=("-au_static",)),
        _stage("au_json", stages=("features",)),
        _stage("au_json", allow_mismatch=True),
    ],
)
def test_another_file_or_setting_is_another_fingerprint(world, tmp_path, stage, file, settings):
    session = world(face_root=tmp_path / "faces")
    task, _ = what_is_left(session, "a", None, RunReport(1))
    first = fingerprint(task, stage)
    assert len(first) == 16 and fingerprint(task, stage) == first
    if file == "json":
        file = au_json_path(tmp_path / "au", "toy", "a").relative_to(tmp_path)
    if file:
        path = Path(tmp_path / file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("another")
        changed = fingerprint(task, stage)
        os.utime(path, (1, 1))
        assert len({first, changed, fingerprint(task, stage)}) == 3
    else:
        assert fingerprint(replace(task, settings=replace(task.settings, **settings)), stage) != first


@pytest.mark.parametrize("settings", [{"stages": ("features",)}, {"allow_mismatch": True}])
def test_what_only_concerns_action_units_is_no_reason_to_try_pictures_again(world, tmp_path, settings):
    task, _ = what_is_left(world(), "a", None, RunReport(1))
    first = fingerprint(task, "frame")
    world(json=True)
    assert fingerprint(replace(task, settings=replace(task.settings, **settings)), "frame") == first
