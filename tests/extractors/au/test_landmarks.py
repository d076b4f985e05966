"""Landmark geometry: which movement raises which unit, what the head does to it, and the mesh on real clips."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from affect.core.errors import MediaError
from extractors.au import landmarks
from extractors.au.landmarks import (
    LEAST_R,
    MOVEMENTS,
    REPORTED,
    analyse_landmarks,
    face_frame,
    intensities,
    landmark_table,
    table_of,
)
from extractors.au.openface import read_openface
from extractors.media.decode import all_frames, read_video

RIGHT_HALF = {  # place in eye distances from the middle between the eyes; x to the right of the picture
    33: (-0.5, 0, 0.1), 133: (-0.17, 0.01, 0), 158: (-0.26, -0.04, 0), 159: (-0.33, -0.05, 0), 160: (-0.4, -0.04, 0),
    144: (-0.4, 0.04, 0), 145: (-0.33, 0.05, 0), 153: (-0.26, 0.04, 0), 107: (-0.12, -0.2, -0.05),
    66: (-0.2, -0.22, -0.05), 105: (-0.35, -0.25, 0), 63: (-0.45, -0.22, 0.02), 50: (-0.45, 0.35, 0.05),
    101: (-0.3, 0.33, 0), 117: (-0.45, 0.25, 0.08), 118: (-0.35, 0.24, 0.03), 205: (-0.38, 0.5, 0.05),
    129: (-0.18, 0.45, 0), 39: (-0.12, 0.7, -0.05), 40: (-0.18, 0.72, -0.03), 61: (-0.28, 0.78, 0.02),
}  # fmt: skip
MIRRORED = {
    33: 263, 133: 362, 158: 385, 159: 386, 160: 387, 144: 373, 145: 374, 153: 380, 107: 336, 66: 296, 105: 334,
    63: 293, 50: 280, 101: 330, 117: 346, 118: 347, 205: 425, 129: 358, 39: 269, 40: 270, 61: 291,
}  # fmt: skip
MIDDLE = {
    10: (0, -0.7, 0), 168: (0, -0.02, -0.1), 6: (0, 0.08, -0.12), 197: (0, 0.18, -0.17), 195: (0, 0.27, -0.23),
    5: (0, 0.35, -0.28), 4: (0, 0.42, -0.3), 2: (0, 0.53, -0.15), 0: (0, 0.69, -0.1), 13: (0, 0.76, -0.06),
    14: (0, 0.77, -0.06), 17: (0, 0.87, -0.08), 200: (0, 1.0, -0.05), 199: (0, 1.1, -0.05), 175: (0, 1.17, 0),
    152: (0, 1.22, 0.05),
}  # fmt: skip


def face() -> np.ndarray:
    """A face at rest [478, 3], 80 pixels between the eyes."""
    points = np.random.default_rng(0).normal(scale=0.3, size=(478, 3))
    for i, place in {**RIGHT_HALF, **MIDDLE}.items():
        points[i] = place
    for i, twin in MIRRORED.items():
        points[twin] = points[i] * (-1, 1, 1)
    return points * 80 + (320, 200, 0)


def clip(*shifts: tuple[tuple[int, ...], tuple[float, float, float]], frames: int = 40) -> np.ndarray:
    """Landmarks [T, 478, 3] of a face that rests and, in the last fifth, moves points by eye distances.

    x counts away from the middle of the face.
    """
    landmarks = np.tile(face(), (frames, 1, 1))
    for points, (out, down, back) in shifts:
        for i in points:
            side = np.sign(round(face()[i, 0] - 320))
            landmarks[-(frames // 5) :, i] += np.array([out * side, down, back]) * 80
    return landmarks


def risen(landmarks: np.ndarray) -> set[str]:
    """Units that are visibly stronger at the end of the clip than at its start."""
    table = intensities(landmarks)
    assert not table.iloc[0].any()
    return {name.removesuffix("_r") for name, value in table.iloc[-1].items() if value > 0.2}


INNER, OUTER = (107, 66, 336, 296), (105, 63, 334, 293)
CORNERS, UPPER_LIDS, LOWER_LIDS = (61, 291), (158, 159, 160, 385, 386, 387), (144, 145, 153, 373, 374, 380)
CHEEKS = (50, 101, 117, 118, 205, 280, 330, 346, 347, 425)


@pytest.mark.parametrize(
    ("shifts", "units"),
    [
        ([(INNER + OUTER, (0, -0.05, 0))], {"AU01", "AU02"}),
        ([(INNER, (0, -0.05, 0))], {"AU01"}),
        ([(OUTER, (0, -0.05, 0))], {"AU02"}),
        ([(INNER, (-0.02, 0.03, 0))], {"AU04"}),
        ([(UPPER_LIDS, (0, -0.03, 0))], {"AU05"}),
        ([(UPPER_LIDS, (0, 0.08, 0))], {"AU45"}),
        ([(CHEEKS, (0, -0.03, 0))], {"AU06"}),
        ([(LOWER_LIDS, (0, -0.02, 0))], {"AU07", "AU45"}),
        ([((129, 358), (0, -0.08, 0))], {"AU09"}),
        ([((39, 40, 269, 270), (0, -0.05, 0))], {"AU10"}),
        ([(CORNERS, (0.04, -0.1, 0))], {"AU12"}),
        ([(CORNERS, (0, 0, 0.06))], {"AU14"}),
        ([(CORNERS, (0, 0.07, 0))], {"AU15", "AU17"}),
        ([((14, 17), (0, -0.04, 0)), ((13,), (0, -0.04, 0))], {"AU17"}),
        ([(CORNERS, (0.15, 0, 0))], {"AU12", "AU20"}),
        ([(CORNERS, (-0.1, 0, 0))], {"AU23"}),
        ([((14, 17), (0, 0.1, 0))], {"AU25"}),
        ([((14, 17, 175, 199, 200, 152), (0, 0.1, 0))], {"AU25", "AU26"}),
    ],
)
def test_a_movement_raises_the_units_that_it_belongs_to(shifts, units):
    assert risen(clip(*shifts)) == units


def test_a_wider_mouth_is_a_stronger_lip_corner_puller():
    strengths = [intensities(clip((CORNERS, (x, -x, 0))))["AU12_r"].iloc[-1] for x in (0.02, 0.05, 0.1)]
    assert strengths == sorted(strengths)
    assert strengths[0] > 0
    assert strengths[-1] < 5


def test_the_head_may_turn_move_and_come_closer():
    moving = clip((INNER, (0, -0.05, 0)), (CORNERS, (0.05, -0.05, 0.02)), ((14, 17, 152, 199), (0, 0.1, 0)))
    rng = np.random.default_rng(1)
    turns = Rotation.from_euler("xyz", rng.uniform(-40, 40, (len(moving), 3)), degrees=True).as_matrix()
    sizes = rng.uniform(0.5, 2, (len(moving), 1, 1))
    elsewhere = sizes * (moving @ turns) + rng.normal(scale=300, size=(len(moving), 1, 3))
    np.testing.assert_allclose(intensities(elsewhere), intensities(moving), atol=1e-3)


def test_a_mirrored_picture_has_the_same_units():
    moving = clip((INNER, (0, -0.05, 0)), (CORNERS, (0.05, -0.05, 0.02)))
    mirrored = moving * (-1, 1, 1)
    for i, twin in MIRRORED.items():
        mirrored[:, [i, twin]] = mirrored[:, [twin, i]]
    np.testing.assert_allclose(intensities(mirrored), intensities(moving), atol=1e-6)


def test_face_frame_is_upright_and_in_eye_distances():
    upright = face_frame(clip() @ Rotation.from_euler("xyz", (20, -30, 15), degrees=True).as_matrix())
    right, left = upright[0, 33], upright[0, 263]
    np.testing.assert_allclose(left - right, (1, 0, 0), atol=1e-9)
    down = upright[0, 2] - upright[0, 10]
    assert down[1] > 1
    assert upright[0, 4, 2] < upright[0, 33, 2], "the tip of the nose is nearer to the camera than the eyes"


def test_shaking_landmarks_stay_within_the_scale():
    table = intensities(clip() + np.random.default_rng(2).normal(scale=30, size=(40, 478, 3)))
    assert table.to_numpy().min() >= 0
    assert table.to_numpy().max() == 5


@pytest.mark.parametrize("bad", [np.zeros((0, 478, 3)), np.zeros((3, 468, 3)), np.full((1, 478, 3), np.nan)])
def test_landmarks_that_are_no_face_are_refused(bad):
    with pytest.raises(ValueError, match="478"):
        face_frame(bad)


# -- table -----------------------------------------------------------------------------------------


def test_faceless_frames_stay_but_carry_no_units():
    landmarks = clip((INNER, (0, -0.05, 0)))
    landmarks[:5] = np.nan
    table = table_of(landmarks, np.arange(40) / 25)
    units = [f"{unit}_r" for unit in MOVEMENTS]
    assert table["face"].tolist() == [False] * 5 + [True] * 35
    assert table.loc[:4, units].isna().to_numpy().all()
    assert table.loc[5:, units].notna().to_numpy().all()
    assert table["AU01_r"].iloc[-1] > 1


def test_clip_without_any_face_gives_a_table_without_units():
    table = table_of(np.full((3, 478, 3), np.nan), np.arange(3) / 25)
    assert not table["face"].any()
    assert table["AU12_r"].isna().all()


def test_single_frame_measures_nothing():
    assert not table_of(clip()[:1], np.zeros(1)).filter(like="_r").to_numpy().any()


def test_table_has_the_form_of_an_openface_table(shared):
    theirs = read_openface(shared / "data/openface/featureextraction/grid_bbaf2n.csv")
    ours = table_of(clip(), np.arange(40) / 25)
    assert set(ours) == {name for name in theirs if not name.endswith("_c")}
    assert ours.dtypes.to_dict() == {name: theirs.dtypes[name] for name in ours}


def test_reported_figures_are_those_of_the_documents():
    lines = (Path(__file__).parents[3] / "docs/au_backends.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| AU")]
    figures = {row[0]: [float(cell) for cell in (row[2], row[3], row[6])] for row in rows if row[0] in MOVEMENTS}
    assert figures.keys() == MOVEMENTS.keys()
    assert {
        unit: min(r, other) for unit, (r, held, other) in figures.items() if min(r, held, other) >= LEAST_R
    } == REPORTED
    assert {row[0] for row in rows if row[-1] == "yes"} == REPORTED.keys()


# -- video -----------------------------------------------------------------------------------------


def stand_in(monkeypatch, answer) -> list[bool]:
    """Put a function of the picture in the mesh's place; return which pictures were said to begin a clip."""
    begins = []
    monkeypatch.setattr(landmarks, "mediapipe_version", lambda: "0.10.21")
    monkeypatch.setattr(landmarks, "ask_mediapipe", lambda ask, picture, first: begins.append(first) or answer(picture))
    return begins


def test_every_frame_goes_through_the_mesh_and_only_reported_units_come_out(shared, monkeypatch):
    video = shared / "data/video/grid_bbaf2n.mpg"
    moving = iter(clip((INNER + OUTER, (0, -0.05, 0)), ((14, 17), (0, 0.1, 0)), frames=75) / (360, 288, 360))
    begins = stand_in(monkeypatch, lambda picture: next(moving).tolist() if picture.shape == (288, 360, 3) else None)
    analysis = analyse_landmarks(video)
    assert begins == [True] + [False] * 74
    assert analysis.source_path == str(video)
    assert (analysis.provenance["units"], analysis.provenance["tool_version"]) == (REPORTED, "0.10.21")
    assert len(analysis.per_frame_au_descriptions) == 75
    shown = analysis.per_frame_au_descriptions[-1]["active_aus"].keys()
    assert shown == {"AU25_r"}, "AU02 is measured, not reported"


def test_mesh_that_finds_nothing_makes_a_faceless_clip(shared, monkeypatch):
    stand_in(monkeypatch, lambda picture: None)
    assert analyse_landmarks(shared / "data/video/grid_bbaf2n.mpg").faceless


def test_text_renamed_to_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(MediaError):
        landmark_table(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["grid_bbaf2n.mpg", "pyfeat_face_noface.mov"])
def test_all_frames_are_those_that_single_reads_give(shared, name):
    video = read_video(shared / "data/video" / name)
    times, pictures = zip(*all_frames(shared / "data/video" / name), strict=True)
    assert len(pictures) == video.num_frames
    assert times[0] == 0
    assert list(times) == sorted(times)
    for i in (0, video.num_frames // 2, video.num_frames - 1):
        np.testing.assert_allclose(pictures[i].astype(int), video.frames([i])[0], atol=3)


# -- the true mesh ---------------------------------------------------------------------------------


def test_face_that_vanishes_is_lost_where_it_vanishes(shared, mediapipe):
    table = landmark_table(shared / "data/video/pyfeat_face_noface.mov")
    faces = np.flatnonzero(table["face"])
    theirs = read_openface(shared / "data/openface/featureextraction/pyfeat_face_noface.csv")
    assert len(table) == len(theirs)
    assert faces.tolist() == list(range(len(faces)))
    assert abs(len(faces) - 72) <= 2


def test_times_are_those_of_openface(shared, mediapipe):
    table = landmark_table(shared / "data/video/grid_bbaf2n.mpg")
    theirs = read_openface(shared / "data/openface/featureextraction/grid_bbaf2n.csv")
    np.testing.assert_allclose(table["timestamp"], theirs["timestamp"], atol=1e-3)


def test_smile_is_seen_as_openface_sees_it(shared, mediapipe):
    analysis = analyse_landmarks(shared / "data/video/pyfeat_single_face.mp4")
    strong = analysis.per_frame_au_descriptions[34]["active_aus"]
    assert {"AU06_r", "AU10_r", "AU12_r", "AU25_r"} <= strong.keys()
    assert analysis.au_info["peak_frames"]
    assert not analysis.au_info["frames_without_face"]


def test_clip_without_a_face_is_faceless(shared, mediapipe):
    assert analyse_landmarks(shared / "data/video/pyfeat_no_face.mp4").faceless


def test_one_clip_does_not_change_the_next(shared, mediapipe):
    video = shared / "data/video/pyfeat_single_face.mp4"
    first = landmark_table(video)
    landmark_table(shared / "data/video/grid_bbaf2n.mpg")
    assert landmark_table(video).equals(first)
