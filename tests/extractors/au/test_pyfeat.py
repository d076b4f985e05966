"""py-feat's rows as a table; a stand-in with the interface of version 2.1 takes the package's place."""

import ast
import importlib.machinery
import os
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affect.faces.mediapipe_pipe import VARIABLE
from extractors.au import pyfeat
from extractors.au.openface import read_openface
from extractors.au.pyfeat import ACTIVE_THRESHOLD, analyse_pyfeat, pyfeat_table, table_of


def row(frame, score=0.99, side=100.0, **units):
    """One face of one frame as `detect` gives it; no score, no face."""
    units = {"AU01": 0.1, "AU12": 0.1, "AU24": 0.9, "AU43": 0.9} | units
    if score is None:
        score, side, units = 0.0, np.nan, dict.fromkeys(units, np.nan)
    return {"frame": frame, "FaceScore": score, "FaceRectWidth": side, "FaceRectHeight": side} | units


def stand_in(monkeypatch, detector) -> None:
    module = types.ModuleType("feat")
    module.__spec__ = importlib.machinery.ModuleSpec("feat", None)
    module.__version__ = "2.1.5"
    module.Detectorv1 = detector
    monkeypatch.setitem(sys.modules, "feat", module)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.1.5")
    pyfeat._detector.cache_clear()


@pytest.fixture(autouse=True)
def _forget_the_stand_in():
    yield
    pyfeat._detector.cache_clear()


def test_probabilities_become_the_scale_of_openface():
    table = table_of(pd.DataFrame([row(0, AU12=0.5), row(1, AU12=1.0)]), 2, 25)
    assert table["AU12_r"].tolist() == [2.5, 5.0]
    assert table["frame"].tolist() == [1, 2]
    assert table["timestamp"].tolist() == [0.0, 0.04]


def test_units_that_openface_does_not_measure_are_left_out():
    table = table_of(pd.DataFrame([row(0)]), 1, 25)
    assert [name for name in table if name.startswith("AU")] == ["AU01_r", "AU12_r"]


def test_the_largest_of_several_faces_is_kept():
    faces = pd.DataFrame([row(0, side=200.0, AU12=0.8), row(0, side=50.0, AU12=0.2), row(1, side=60.0, AU12=0.4)])
    assert table_of(faces, 2, 25)["AU12_r"].tolist() == [4.0, 2.0]


@pytest.mark.parametrize("lost", [[row(1, None)], [row(1, 0.5)], []])
def test_frame_without_a_believed_face_stays_but_carries_no_units(lost):
    table = table_of(pd.DataFrame([row(0), *lost, row(2)]), 3, 25)
    assert table["face"].tolist() == [True, False, True]
    assert table.loc[1, ["AU01_r", "AU12_r"]].isna().all()


def test_table_has_the_form_of_an_openface_table(shared):
    theirs = read_openface(shared / "data/openface/featureextraction/grid_bbaf2n.csv")
    ours = table_of(pd.DataFrame([row(0), row(1)]), 3, 25)
    assert ours.dtypes.to_dict() == {name: theirs.dtypes[name] for name in ours}


@pytest.mark.parametrize("column", ["frame", "FaceScore", "FaceRectWidth"])
def test_missing_column_is_named(column):
    with pytest.raises(ValueError, match=column):
        table_of(pd.DataFrame([row(0)]).drop(columns=column), 1, 25)


def test_table_without_units_is_refused():
    with pytest.raises(ValueError, match="AU01"):
        table_of(pd.DataFrame([row(0)]).drop(columns=["AU01", "AU12"]), 1, 25)


def test_units_are_active_when_more_likely_than_not(shared, monkeypatch):
    video = shared / "data/video/grid_bbaf2n.mpg"
    asked = {}

    class Detector:
        def __init__(self, **models):
            asked.update(models)

        def detect(self, inputs, data_type="image", **options):
            asked.update(inputs=inputs, data_type=data_type)
            return pd.DataFrame([row(i, AU12=0.6 if i > 40 else 0.4) for i in range(75)])

    stand_in(monkeypatch, Detector)
    analysis = analyse_pyfeat(video)
    assert asked["inputs"] == str(video)
    assert asked["data_type"] == "video"
    assert asked["emotion_model"] is None, "emotions are not asked of a tool that measures muscles"
    active = [set(frame["active_aus"]) for frame in analysis.per_frame_au_descriptions]
    assert active == [set()] * 41 + [{"AU12_r"}] * 34
    assert analysis.provenance["active_threshold"] == ACTIVE_THRESHOLD
    assert "probability" in analysis.provenance["scale"]
    assert analysis.source_path == str(video)


def test_models_are_loaded_once(shared, monkeypatch):
    made = []

    class Detector:
        def __init__(self, **models):
            made.append(models)

        def detect(self, inputs, **options):
            return pd.DataFrame([row(0)])

    stand_in(monkeypatch, Detector)
    for _ in range(2):
        pyfeat_table(shared / "data/video/grid_bbaf2n.mpg")
    assert len(made) == 1


def test_missing_weights_are_one_sentence(shared, monkeypatch):
    def no_weights(**models):
        raise OSError("cannot find the requested files\nin the local cache")

    stand_in(monkeypatch, no_weights)
    with pytest.raises(FileNotFoundError, match=r"no weights \(cannot find the requested files in the local cache\)"):
        pyfeat_table(shared / "data/video/grid_bbaf2n.mpg")


def test_the_published_package_has_the_interface_that_is_used(mediapipe):
    (source,) = Path(os.environ[VARIABLE]).parents[1].glob("lib/python*/site-packages/feat/detector.py")
    (detector,) = (node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") == "Detectorv1")
    functions = {node.name: {arg.arg for arg in node.args.args} for node in detector.body if hasattr(node, "args")}
    assert {"au_model", "emotion_model", "identity_model", "gaze_model", "device"} <= functions["__init__"]
    assert {"inputs", "data_type", "face_detection_threshold", "progress_bar"} <= functions["detect"]
