"""OpenFace tables: every real layout, damaged ones, peaks, and running the tool."""

import json
import os
import stat
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affect.core.au_json import read_au_json, write_au_json
from affect.core.facs import parse_au_description
from extractors.au.openface import analyse_openface, find_peaks, overall_intensity, read_openface, run_openface

HEADER = "frame, face_id, timestamp, confidence, success, AU04_r, AU12_r, AU12_c"


def _table(folder: Path, *rows: str, header: str = HEADER, end: str = "\n") -> Path:
    path = folder / "clip.csv"
    path.write_text("\n".join([header, *rows]) + end, encoding="utf-8")
    return path


def _row(frame, au04=0.0, au12=0.0, face=0, confidence=0.98, success=1, timestamp=None):
    seconds = (frame - 1) / 25 if timestamp is None else timestamp
    return f"{frame}, {face}, {seconds:.3f}, {confidence}, {success}, {au04}, {au12}, 1.00"


def _real_tables(shared: Path) -> list[Path]:
    tables = [*(shared / "data/openface").rglob("*.csv"), *(shared / "data/merfactory").glob("*rows*.csv")]
    assert len(tables) >= 18
    return sorted(tables)


# -- reading ---------------------------------------------------------------------------------------


def test_every_real_layout_gives_the_numbers_of_its_cells(shared):
    for path in _real_tables(shared):
        raw = pd.read_csv(path, skipinitialspace=True)
        raw.columns = [name.strip().replace("fac_", "").replace("int", "_r") for name in raw.columns]
        table = read_openface(path)
        face = ((raw["success"] == 1) & (raw["confidence"] >= 0.8)).to_numpy()
        units = [name for name in table if name.endswith("_r")]
        assert len(units) == 17
        assert table["frame"].tolist() == list(range(1, len(raw) + 1))
        assert table["face"].tolist() == face.tolist()
        np.testing.assert_allclose(table.loc[face, units], raw.loc[face, units].clip(lower=0))
        assert table.loc[~face, units].isna().to_numpy().all()
        np.testing.assert_allclose(table["timestamp"], raw["timestamp"], atol=5.1e-4)


def test_renamed_table_of_another_tool_says_the_same_as_the_original(shared):
    folder = shared / "data/openface"
    original = analyse_openface(folder / "opendbm_subj01_timepoint02.csv")
    renamed = analyse_openface(folder / "opendbm_subj01_timepoint02_facau.csv")
    assert renamed.au_info == original.au_info
    assert renamed.per_frame_au_descriptions == original.per_frame_au_descriptions


def test_intensities_above_the_scale_count_as_its_end(tmp_path):
    with pytest.warns(UserWarning, match=r"clip\.csv: an action unit of 6\.5 counts as 5"):
        table = read_openface(_table(tmp_path, _row(1, au12=6.5), _row(2, au12=5.0)))
    assert table["AU12_r"].tolist() == [5.0, 5.0]


def test_negative_intensities_count_as_none(tmp_path):
    table = read_openface(_table(tmp_path, _row(1, au04=-1.31, au12=2.0)))
    assert table.loc[0, ["AU04_r", "AU12_r"]].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("lost", [{"success": 0}, {"confidence": 0.79}])
def test_frame_without_a_believed_face_stays_but_carries_no_units(tmp_path, lost):
    table = read_openface(_table(tmp_path, _row(1, au12=1.0), _row(2, au12=4.0, **lost), _row(3, au12=1.0)))
    assert table["face"].tolist() == [True, False, True]
    assert overall_intensity(table).tolist() == [1.0, 0.0, 1.0]


def test_confidence_threshold_is_inclusive(tmp_path):
    path = _table(tmp_path, _row(1, confidence=0.8), _row(2, confidence=0.5))
    assert read_openface(path)["face"].tolist() == [True, False]


def test_frames_that_the_table_leaves_out_have_no_face_and_a_plausible_time(tmp_path):
    table = read_openface(_table(tmp_path, _row(3, au12=1.0), _row(4, au12=1.0), _row(7, au12=1.0)))
    assert table["frame"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert table["face"].tolist() == [False, False, True, True, False, False, True]
    np.testing.assert_allclose(table["timestamp"], np.arange(7) / 25)


def test_rows_in_any_order_are_sorted_by_frame(tmp_path):
    seconds = {1: 0.0, 2: 0.1, 3: 0.5, 4: 0.6, 6: 1.0, 7: 1.5}
    rows = [_row(frame, au12=frame / 2, timestamp=seconds[frame]) for frame in (6, 2, 7, 1, 4, 3)]
    table = read_openface(_table(tmp_path, *rows))
    assert table["AU12_r"].fillna(0).tolist() == [0.5, 1.0, 1.5, 2.0, 0.0, 3.0, 3.5]
    assert table["timestamp"].tolist() == [0.0, 0.1, 0.5, 0.6, 0.8, 1.0, 1.5]


def test_longest_and_surest_track_of_several_faces_is_kept(tmp_path):
    rows = [_row(frame, au12=3.0, face=0, confidence=0.99) for frame in (1, 2)]
    rows += [_row(frame, au12=1.0, face=1, confidence=0.9) for frame in (2, 3, 4)]
    rows += [_row(frame, au12=5.0, face=2, confidence=0.1) for frame in range(1, 10)]
    table = read_openface(_table(tmp_path, *rows))
    assert table["face"].tolist() == [False, True, True, True] + [False] * 5
    assert table["AU12_r"].max() == 1.0


def test_equal_tracks_are_decided_by_the_lowest_face(tmp_path):
    table = read_openface(_table(tmp_path, _row(1, au12=2.0, face=1), _row(1, au12=1.0, face=0)))
    assert table["AU12_r"].tolist() == [1.0]


def test_table_in_which_another_face_was_seen_once_is_not_faceless(tmp_path):
    analysis = analyse_openface(_table(tmp_path, _row(1, success=0), _row(2, success=0), _row(2, au12=1.0, face=1)))
    assert analysis.au_info["frames_without_face"] == [[1, 1]]


def test_missing_measurements_are_allowed_where_there_is_no_face_only(tmp_path):
    path = _table(tmp_path, _row(1, au12=1.0), _row(2, au04="-nan(ind)", au12="", success=0))
    assert read_openface(path)["face"].tolist() == [True, False]
    path = _table(tmp_path, _row(1, au12=1.0), _row(2, au04="nan"))
    with pytest.raises(ValueError, match="row 3 has a face but no number for AU04_r"):
        read_openface(path)


def test_cut_real_table_is_refused_with_its_row(shared):
    path = shared / "data/merfactory/default_openface_from_notebook_TRUNCATED.csv"
    with pytest.raises(ValueError, match="row 225 has 27 of 40 columns"):
        read_openface(path)


def test_cut_at_any_place_inside_the_last_row_is_refused(shared, tmp_path):
    content = (shared / "data/openface/featureextraction/grid_bbaf2n.csv").read_bytes()
    last = content.rstrip().rfind(b"\n") + 1
    for length in range(last + 1, content.rstrip().rfind(b",") + 1):
        (tmp_path / "cut.csv").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.csv: row 76 has \d+ of 40 columns"):
            read_openface(tmp_path / "cut.csv")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "found the header alone"),
        ([_row(1, au12="abc")], "row 2, column 'AU12_r': expected a number, found 'abc'"),
        ([_row(1, au12="inf")], "row 2 has a face but no number for AU12_r"),
        ([_row(1, confidence="high")], "column 'confidence'"),
        ([_row(1, confidence="")], "row 2, column 'confidence': expected a number, found none"),
        ([_row(1), _row(2), _row(1)], "row 4: frame 1 occurs twice"),
        ([_row(0)], "frame must count 1, 2, 3 ..., found 0"),
        ([_row(1.5)], "found 1.5"),
        ([_row(1), _row(10**6)], "at most 100,000 frames, found 1,000,000"),
        (["1, 0, 0.0"], "row 2 has 3 of 8 columns"),
    ],
)
def test_damaged_rows_are_refused_in_one_sentence(tmp_path, rows, said):
    path = _table(tmp_path, *rows)
    with pytest.raises(ValueError) as caught:
        read_openface(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("frame, timestamp, confidence, success, gaze_0_x", "expected action unit columns"),
        ("frame, timestamp, confidence, success, AU12_c", "expected action unit columns"),
        ("face, confidence, AU12_r", "found no column 'frame'"),
        ("frame, timestamp, confidence, success, AU12_r, AU12_r", "found 'AU12_r' twice"),
        ("frame, timestamp, success, AU12_r", "found no column 'confidence'"),
        ("frame, timestamp, confidence, success, AU99_r", "'AU99_r' is no action unit"),
        ("name;text", "found no column 'frame'"),
    ],
)
def test_other_tables_are_refused(tmp_path, header, said):
    with pytest.raises(ValueError, match=said):
        read_openface(_table(tmp_path, "1, 2, 3, 4, 5", header=header))


def test_empty_binary_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "clip.csv"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="found an empty file"):
        read_openface(path)
    path.write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(ValueError, match="expected an OpenFace table, but it cannot be read"):
        read_openface(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_openface(path)


# -- analysing -------------------------------------------------------------------------------------


def test_peaks_are_high_enough_and_far_enough_apart():
    intensity = np.zeros(60)
    intensity[[5, 15, 40, 55]] = [3.0, 2.0, 0.9, 0.7]
    assert find_peaks(intensity) == [5, 40]


def test_peak_counts_the_frames_around_it(tmp_path):
    rows = [_row(frame, au12=2.0 if frame == 3 else 0.0) for frame in range(1, 9)]
    info = analyse_openface(_table(tmp_path, *rows)).au_info
    assert info["peak_frames"] == [
        {"peak_index": 2, "frames_before_peak": 2, "frames_after_peak": 5, "timestamp": 0.08, "intensity": 2.0}
    ]
    assert info["total_frames"] == 8 and info["no_peak_reason"] == ""


def test_units_are_active_above_the_threshold(tmp_path):
    path = _table(tmp_path, _row(1, au04=0.8, au12=0.81))
    (frame,) = analyse_openface(path).per_frame_au_descriptions
    assert frame["active_aus"] == {"AU12_r": 0.81}
    assert frame["au_description"] == "Lip corner puller (intensity: 0.81)"


def test_active_units_follow_the_rule_that_users_models_were_tuned_with(shared):
    lines = (shared / "data/text/au_instruction_val.jsonl").read_text(encoding="utf-8").splitlines()
    inputs = [json.loads(line)["input"].rpartition("AU descriptions: ")[2] for line in lines]
    values = [value for text in inputs for value in parse_au_description(text).values()]
    assert min(values) == 0.81


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([_row(frame, success=0) for frame in (1, 2)], "no frame has a face"),
        ([_row(1), _row(2, au12=0.5), _row(3)], "never reaches 0.8; its largest value is 0.50"),
        ([_row(1), _row(2, au12=2.0), _row(3, au12=3.5)], "there is expression (overall intensity 3.50 at frame 3)"),
    ],
)
def test_clip_without_a_peak_says_why(tmp_path, rows, said):
    info = analyse_openface(_table(tmp_path, *rows)).au_info
    assert info["peak_frames"] == [] and said in info["no_peak_reason"]


def test_real_clip_in_which_the_face_vanishes_says_where(shared):
    path = shared / "data/openface/featureextraction/pyfeat_face_noface.csv"
    analysis = analyse_openface(path)
    raw = pd.read_csv(path, skipinitialspace=True)
    lost = raw.loc[(raw["success"] == 0) | (raw["confidence"] < 0.8), "frame"].tolist()
    runs = analysis.au_info["frames_without_face"]
    assert not analysis.faceless and len(lost) > 80
    assert [frame for first, last in runs for frame in range(first, last + 1)] == lost
    for frame in analysis.per_frame_au_descriptions:
        assert analysis.has_face(frame["frame"]) or (not frame["active_aus"] and frame["au_description"] == "")


def test_real_clip_with_no_face_is_faceless_with_all_its_frames(shared):
    analysis = analyse_openface(shared / "data/openface/featureextraction/pyfeat_no_face.csv")
    assert analysis.faceless
    assert analysis.au_info["frames_without_face"] == [[1, 95]]
    assert len(analysis.per_frame_au_descriptions) == 95


def test_peak_frames_of_real_clips_are_marked_and_survive_the_json(shared, tmp_path):
    for path in _real_tables(shared):
        analysis = analyse_openface(path, source_path="clip.mp4")
        write_au_json(analysis, tmp_path / "a.json")
        assert read_au_json(tmp_path / "a.json") == analysis
        marked = [i for i, frame in enumerate(analysis.per_frame_au_descriptions) if frame["is_peak_frame"]]
        assert marked == [peak["peak_index"] for peak in analysis.au_info["peak_frames"]]
        assert analysis.provenance["tool"] == "OpenFace" and analysis.provenance["source"] == str(path)


# -- running ---------------------------------------------------------------------------------------


def _fake_openface(folder: Path, body: str) -> str:
    """A FeatureExtraction that sees its arguments as "$@", and the output folder as $4."""
    path = folder / "FeatureExtraction"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "my clip.v2.mp4"
    path.write_bytes(b"video")
    return path


def test_tool_gets_its_arguments_and_its_table_comes_back(tmp_path, video):
    table = "\\n".join([HEADER, _row(1, au12=1.0)])
    body = f"""printf '%s|' "$@" > '{tmp_path}/seen'\nprintf '{table}\\n' > "$4/my clip.v2.csv" """
    made = run_openface(video, tmp_path / "out", _fake_openface(tmp_path, body), ["-mloc", "model/main.txt"])
    assert made == tmp_path / "out" / "my clip.v2.csv"
    assert read_openface(made)["AU12_r"].tolist() == [1.0]
    seen = (tmp_path / "seen").read_text().split("|")
    assert seen[:3] == ["-f", str(video), "-out_dir"] and seen[4:7] == ["-aus", "-mloc", "model/main.txt"]
    assert list((tmp_path / "out").iterdir()) == [made]


def test_tool_is_found_by_its_variable(tmp_path, video, monkeypatch):
    monkeypatch.setenv("OPENFACE_EXECUTABLE", _fake_openface(tmp_path, 'echo x > "$4/my clip.v2.csv"'))
    assert run_openface(video, tmp_path / "out").is_file()


def test_absent_tool_is_named_with_what_to_do(tmp_path, video, monkeypatch):
    monkeypatch.delenv("OPENFACE_EXECUTABLE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="OPENFACE_EXECUTABLE"):
        run_openface(video, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone/FeatureExtraction"):
        run_openface(video, tmp_path, "gone/FeatureExtraction")


def test_absent_video_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4: expected a video"):
        run_openface(tmp_path / "gone.mp4", tmp_path, _fake_openface(tmp_path, "true"))


def test_failure_shows_the_last_line_of_errors_and_leaves_nothing(tmp_path, video):
    body = 'echo half > "$4/my clip.v2.csv"; echo loading; echo "first" >&2; echo "no model" >&2; exit 3'
    with pytest.raises(RuntimeError, match=r"failed with exit code 3 \(no model\)"):
        run_openface(video, tmp_path / "out", _fake_openface(tmp_path, body))
    assert list((tmp_path / "out").iterdir()) == []


def test_run_that_makes_no_table_is_an_error_even_beside_an_old_one(tmp_path, video):
    old = tmp_path / "out" / "my clip.v2.csv"
    old.parent.mkdir()
    old.write_text("old")
    with pytest.raises(RuntimeError, match=r"wrote no table my clip\.v2\.csv \(could not open\)"):
        run_openface(video, tmp_path / "out", _fake_openface(tmp_path, "echo could not open"))


def test_file_that_is_no_program_cannot_be_started(tmp_path, video):
    path = tmp_path / "FeatureExtraction"
    path.write_bytes(b"\x7fELFbroken")
    path.chmod(0o755)
    with pytest.raises(RuntimeError, match="could not be started"):
        run_openface(video, tmp_path, str(path))


def test_tool_that_hangs_is_stopped_with_all_it_started(tmp_path, video):
    body = f"sleep 60 >/dev/null 2>&1 & echo $! > '{tmp_path}/child'; wait"
    with pytest.raises(TimeoutError, match=r"did not end within 1 s"):
        run_openface(video, tmp_path, _fake_openface(tmp_path, body), timeout_s=1)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not _alive(child):
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} was left running")


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
