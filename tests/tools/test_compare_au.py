"""Agreement of an AU backend with OpenFace: what counts, what r says, and the table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import compare_au
from extractors.au.agreement import LEAST_R, TABLES, agreement, compare, find_pairs, pair_frames, pearson
from extractors.au.landmarks import REPORTED
from extractors.au.openface import read_openface

FRAMES = 30


def series(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 4, FRAMES)


def table(face=True, **units) -> pd.DataFrame:
    frames = np.arange(1, FRAMES + 1)
    columns = {f"{unit}_r": values for unit, values in units.items()}
    return pd.DataFrame({"frame": frames, "timestamp": frames / 25, "confidence": 1.0, "face": face, **columns})


def paired(ours, theirs) -> pd.DataFrame:
    return pair_frames(table(AU12=ours), table(AU12=theirs))


def world(folder: Path, **clips: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Write OpenFace tables and empty videos; return the arguments that name them."""
    for part in ("openface", "video"):
        (folder / part).mkdir()
    for name, values in clips.items():
        rows = [f"{i + 1}, {i / 25:.3f}, 0.98, 1, {value:.4f}" for i, value in enumerate(values)]
        text = "\n".join(["frame, timestamp, confidence, success, AU12_r", *rows, ""])
        (folder / "openface" / f"{name}.csv").write_text(text)
        (folder / "video" / f"{name}.mp4").touch()
    return ["--video_root", str(folder / "video"), "--openface_root", str(folder / "openface")], clips


@pytest.fixture
def measured(monkeypatch) -> dict[str, pd.DataFrame]:
    """Tables by name of the video that the backend `mediapipe` is made to give."""
    tables: dict[str, pd.DataFrame] = {}
    monkeypatch.setitem(TABLES, "mediapipe", lambda video: tables[video.stem])
    monkeypatch.setattr(compare_au, "check_backend", lambda name: None)
    return tables


def test_series_that_does_not_change_has_no_r():
    assert np.isnan(pearson(np.zeros(5), np.arange(5.0)))
    assert pearson(np.arange(5.0), 2 * np.arange(5.0) + 1) == pytest.approx(1)


def test_frames_without_a_face_in_either_table_do_not_count():
    faces = np.arange(FRAMES) % 2 == 0
    pair = pair_frames(table(faces, AU12=series(0)), table(np.arange(FRAMES) < 10, AU12=series(1)))
    assert pair["AU12_r"].tolist() == series(0)[[0, 2, 4, 6, 8]].tolist()
    assert pair["AU12_r_openface"].tolist() == series(1)[[0, 2, 4, 6, 8]].tolist()


def test_perfect_agreement_passes_and_contradiction_does_not():
    persons = {"a": "a", "b": "b"}
    same = agreement("AU12", {"a": paired(series(0), series(0)), "b": paired(series(1), series(1))}, persons)
    assert (same.pooled, same.held_out, same.mean) == pytest.approx((1, 1, 1))
    assert same.videos == 2
    assert same.passes
    against = agreement("AU12", {"a": paired(series(0), 4 - series(0)), "b": paired(series(1), 4 - series(1))}, persons)
    assert against.pooled == pytest.approx(-1)
    assert not against.passes


def test_unit_that_only_one_person_moves_has_no_videos_of_others():
    pairs = {"a": paired(series(0), series(0)), "b": paired(series(1), np.zeros(FRAMES))}
    assert agreement("AU12", pairs, {"a": "a", "b": "b"}).videos == 1


def test_person_whose_scale_no_other_has_lowers_the_held_out_r_alone():
    pairs = {name: paired(series(i), series(i)) for i, name in enumerate("abc")}
    pairs["c"] = paired(series(2), series(2) / 8)
    each = agreement("AU12", pairs, {name: name for name in pairs})
    assert each.mean == pytest.approx(1)
    assert each.held_out < each.pooled < 1


def test_videos_of_one_person_are_held_out_together():
    pairs = {name: paired(series(i), series(i) / (1 if name == "a" else 6)) for i, name in enumerate("abc")}
    apart = agreement("AU12", pairs, {"a": "a", "b": "b", "c": "c"})
    together = agreement("AU12", pairs, {"a": "a", "b": "bc", "c": "bc"})
    assert together.held_out < apart.held_out
    assert together.pooled == apart.pooled


def test_unit_that_never_moves_does_not_pass():
    still = agreement("AU12", {"a": paired(np.zeros(FRAMES), series(0))}, {"a": "a"})
    assert np.isnan(still.pooled)
    assert not still.passes


def test_table_is_printed_and_written(tmp_path, measured, capsys):
    arguments, clips = world(tmp_path, a=series(0), b=series(1))
    measured.update({name: table(AU12=values, AU01=values) for name, values in clips.items()})
    assert compare_au.main([*arguments, "--out", str(tmp_path / "table.md")]) == 0
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines[2:] == ["| AU12 | Lip corner puller | 1.00 | 1.00 | 1.00 | 2 | yes |"], "AU01 is not in the tables"
    assert f"{2 * FRAMES} frames of 2 videos" in capsys.readouterr().out


def test_tables_without_a_video_are_passed_over(tmp_path):
    world(tmp_path, a=series(0), b=series(1))
    (tmp_path / "video/b.mp4").unlink()
    assert [path.stem for path in find_pairs(tmp_path / "openface", tmp_path / "video")] == ["a"]


def test_folders_that_do_not_belong_together_end_with_code_2(tmp_path, measured, capsys):
    arguments, _ = world(tmp_path, a=series(0))
    (tmp_path / "video/a.mp4").unlink()
    assert compare_au.main(arguments) == 2
    assert "found no such pair" in capsys.readouterr().err


def test_backend_that_sees_no_face_ends_with_code_2(tmp_path, measured, capsys):
    arguments, _ = world(tmp_path, a=series(0))
    measured["a"] = table(face=False, AU12=np.full(FRAMES, np.nan))
    assert compare_au.main(arguments) == 2
    assert "no frame has a face in both" in capsys.readouterr().err


def test_reported_units_agree_on_real_clips(shared, mediapipe):
    videos = find_pairs(shared / "data/openface/featureextraction", shared / "data/video")
    assert len(videos) == 12
    names = ("pyfeat_single_face", "grid_bbaf2n", "grid_lrwp9a")
    some = {table: video for table, video in videos.items() if table.stem in names}
    agreements, frames = compare(TABLES["mediapipe"], some, dict(zip(names, names, strict=True)))
    assert frames == 72 + 75 + 75
    assert all(a.pooled >= LEAST_R for a in agreements if a.unit in REPORTED)


def test_openface_agrees_with_itself(shared):
    tables = sorted((shared / "data/openface/featureextraction").glob("grid_*.csv"))
    agreements, _ = compare(read_openface, {path: path for path in tables}, {path.stem: path.stem for path in tables})
    assert len(agreements) == 17
    assert all(a.pooled == pytest.approx(1) for a in agreements if a.videos)
