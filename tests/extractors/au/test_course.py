"""What was measured reaches the model as numbers: windows, columns, what is not there."""

import numpy as np
import pandas as pd
import pytest

from affect.core.au_json import AuAnalysis, read_au_json, write_au_json
from affect.core.schema import UNMEASURED
from extractors.au.course import COLUMNS, WINDOWS, course_of, values_of
from extractors.au.openface import analyse_openface, analyse_table, frame_table, read_openface

UNIT = [f"{part} {unit}" for part, unit in COLUMNS]


def table(values, face=None, **units):
    face = np.ones(len(values), bool) if face is None else np.array(face)
    rows = frame_table(np.arange(len(values)) / 25, np.ones(len(values)), face)
    return rows.assign(AU12_r=np.where(face, values, np.nan), **units)


def test_rows_are_windows_and_columns_level_change_peak_and_presence():
    rising = table(np.arange(16) / 10, AU12_c=np.arange(16) % 2, AU28_c=np.ones(16))
    rows = values_of(analyse_table(rising, "t.csv", "OpenFace"))
    assert rows.shape == (WINDOWS, 69)
    seen = pd.DataFrame(rows, columns=UNIT)
    np.testing.assert_allclose(seen["level AU12_r"], np.arange(8) / 5 + 0.05, atol=1e-6)
    np.testing.assert_allclose(seen["change AU12_r"], 0.1, atol=1e-6)
    np.testing.assert_allclose(seen["peak AU12_r"], np.arange(8) / 5 + 0.1, atol=1e-6)
    assert (seen["level AU12_c"] == 0.5).all() and (seen["level AU28_c"] == 1).all()
    assert (seen.drop(columns=[c for c in seen if "AU12" in c or "AU28" in c]) == UNMEASURED).all(axis=None)


def test_a_window_without_a_face_is_no_row_and_one_frame_is_a_clip():
    face = np.r_[np.zeros(4, bool), np.ones(12, bool)]
    analysis = analyse_table(table(np.ones(16), face), "t.csv", "OpenFace")
    assert analysis.au_info["course"]["windows"][0]["frames"] == [5, 6]
    assert len(values_of(analysis)) == 6
    assert values_of(analyse_table(table(np.ones(16), np.zeros(16, bool)), "t", "OpenFace")).shape == (0, 69)
    alone = values_of(analyse_table(table([2.0]), "t", "OpenFace"))[0]
    assert alone[UNIT.index("level AU12_r")] == alone[UNIT.index("peak AU12_r")] == 2
    assert alone[UNIT.index("change AU12_r")] == 0


def test_a_file_gives_what_the_table_gave_and_one_of_other_tools_its_active_units(tmp_path, shared):
    path = next((shared / "data/openface/featureextraction").glob("*.csv"))
    analysis = analyse_openface(path)
    write_au_json(analysis, tmp_path / "a.json")
    rows = values_of(read_au_json(tmp_path / "a.json"))
    np.testing.assert_array_equal(rows, values_of(analysis))
    assert (rows != UNMEASURED).all()
    measured = read_openface(path)
    whole = course_of(measured)["windows"]
    assert whole[0]["peak"][0] == pytest.approx(measured.iloc[: whole[0]["frames"][1]]["AU01_r"].max(), abs=1e-4)
    del analysis.au_info["course"]  # as other tools write it: active units only
    other = values_of(analysis)
    assert (other[:, :17] <= rows[:, :17] + 1e-6).all() and (other[:, 51:] == UNMEASURED).all()


def test_a_clip_that_nobody_measured_is_refused_and_a_broken_course_too(tmp_path):
    with pytest.raises(ValueError, match=r"expected per_frame_au_descriptions or au_info\.course"):
        values_of(AuAnalysis("a.mp4", summary_description={"1": "The brows are raised."}))
    for course in (
        {"units": ["AU12_r"], "windows": [{"frames": [1, 2], "level": [1, 2], "change": [0], "peak": [1]}]},
        3,
    ):
        broken = AuAnalysis(au_info={"course": course})
        write_au_json(broken, tmp_path / "b.json")
        with pytest.raises(ValueError, match=r"au_info\.course must hold"):
            read_au_json(tmp_path / "b.json")
