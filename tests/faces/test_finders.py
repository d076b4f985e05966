"""Finding one person's face over the frames of a clip, and never a face where there is none."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from affect.core.errors import MediaError
from affect.faces.finders import Box, build_face_finder, find_faces, load_face_array
from extractors.media.decode import read_video
from extractors.media.sampling import uniform_indices


class ScriptedFinder:
    """Finds what a list says, frame by frame, and notes which boxes it is asked about."""

    name = "scripted"

    def __init__(self, *boxes_of_frames: list[Box]) -> None:
        self._boxes = list(boxes_of_frames)
        self.asked: list[Box] = []

    def boxes(self, frames: np.ndarray) -> list[list[Box]]:
        assert len(frames) == len(self._boxes)
        return self._boxes

    def is_sure(self, frame: np.ndarray, box: Box) -> bool:
        self.asked.append(box)
        return box.score == 1


def box(x: float = 50, y: float = 40, side: float = 20, sure: bool = True) -> Box:
    return Box(x, y, side, score=float(sure))


def scene(frames: int, seed: int = 0) -> np.ndarray:
    """Frames [T, 80, 120, 3] of one blurred random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return np.repeat(np.kron(coarse, np.ones((10, 10, 1), np.uint8))[None], frames, axis=0)


def test_a_face_in_every_frame_gives_a_square_crop_of_each():
    faces = find_faces(scene(3), ScriptedFinder([box()], [box(51)], [box(52)]))
    assert faces.frames == [0, 1, 2]
    assert faces.crops.shape == (3, 224, 224, 3)
    assert faces.crops.dtype == np.uint8
    assert [found.x for found in faces.boxes] == [50, 51, 52]


def test_the_crop_shows_what_is_in_the_box():
    frames = np.zeros((2, 80, 120, 3), np.uint8)
    frames[:, 30:50, 40:60] = [200, 100, 50]
    faces = find_faces(frames, ScriptedFinder([box()], [box()]), size=64)
    assert faces.crops.shape == (2, 64, 64, 3)
    assert (faces.crops[:, 8:-8, 8:-8] == [200, 100, 50]).all()
    assert (faces.crops[:, 0] == 0).all()  # the margin around it


def test_a_crop_stays_inside_the_picture_without_being_squeezed():
    frames = np.zeros((2, 80, 120, 3), np.uint8)
    frames[:, :, :60] = 255
    faces = find_faces(frames, ScriptedFinder([box(0, 0, 40)], [box(0, 0, 40)]))
    assert (faces.crops == 255).all()
    huge = find_faces(frames, ScriptedFinder([box(60, 40, 300)], [box(60, 40, 300)]), size=80)
    assert (huge.crops[0, :, :40] == 255).all()
    assert (huge.crops[0, :, 40:] == 0).all()


def test_no_box_is_no_face():
    faces = find_faces(scene(4), ScriptedFinder([], [], [], []))
    assert faces.crops.shape == (0, 224, 224, 3)
    assert (faces.frames, faces.boxes) == ([], [])
    assert find_faces(scene(0), ScriptedFinder()).crops.shape == (0, 224, 224, 3)


def test_what_flashes_up_once_is_no_face():
    assert find_faces(scene(4), ScriptedFinder([], [box()], [], [])).frames == []
    assert find_faces(scene(1), ScriptedFinder([box()])).frames == [0]  # one frame is all there is


def test_what_is_never_sure_is_no_face():
    unsure = [box(sure=False)]
    assert find_faces(scene(5), ScriptedFinder(*[unsure] * 5)).frames == []
    assert find_faces(scene(5), ScriptedFinder([box()], *[unsure] * 4)).frames == []  # one in five is too little
    assert find_faces(scene(5), ScriptedFinder([box()], [box()], *[unsure] * 3)).frames == [0, 1, 2, 3, 4]
    assert find_faces(scene(5), ScriptedFinder(*[unsure] * 3, [box()], [box()])).frames == [0, 1, 2, 3, 4]


def test_no_more_boxes_are_asked_about_than_it_takes():
    person, someone_behind = [box(30, side=20 + i) for i in range(8)], [box(90, side=12) for _ in range(8)]
    finder = ScriptedFinder(*[list(pair) for pair in zip(someone_behind, person, strict=True)])
    assert find_faces(scene(8), finder).boxes == person
    assert finder.asked == person[:2]


def test_the_larger_of_two_people_is_followed_whatever_the_order_of_boxes():
    small, large = box(20, 40, 14), box(80, 40, 24)
    faces = find_faces(scene(4), ScriptedFinder([small, large], [large, small], [small, large], [large, small]))
    assert {found.x for found in faces.boxes} == {80}


def test_who_stays_longer_wins_over_who_is_larger_for_a_moment():
    passing, staying = box(20, 40, 28), box(90, 40, 20)
    faces = find_faces(
        scene(5), ScriptedFinder([passing, staying], [passing, staying], [staying], [staying], [staying])
    )
    assert {found.x for found in faces.boxes} == {90}
    assert faces.frames == [0, 1, 2, 3, 4]


def test_a_person_may_move_but_not_jump():
    walk = [[box(20 + 12 * i)] for i in range(6)]
    assert find_faces(scene(6), ScriptedFinder(*walk)).frames == [0, 1, 2, 3, 4, 5]
    jump = [[box(20)], [box(20)], [box(20)], [box(100)], [box(100)]]
    assert find_faces(scene(5), ScriptedFinder(*jump)).frames == [0, 1, 2]


def test_a_short_gap_is_bridged_between_two_detections():
    faces = find_faces(scene(4), ScriptedFinder([box(40, 40, 20)], [], [], [box(46, 34, 26)]))
    assert faces.frames == [0, 1, 2, 3]
    middle = faces.boxes[1]
    assert (middle.x, middle.y, middle.side, middle.score) == (42, 38, 22, 0)


def test_frames_before_after_and_long_without_the_face_stay_out():
    gap = [[box()], [], [], [], [box()], []]
    assert find_faces(scene(6), ScriptedFinder(*gap)).frames == [0, 4]
    late = [[], [], [box()], [box()]]
    assert find_faces(scene(4), ScriptedFinder(*late)).frames == [2, 3]


def test_a_cut_to_another_scene_is_not_bridged():
    frames = np.concatenate([scene(2), scene(1, seed=1), scene(1)])
    assert find_faces(frames, ScriptedFinder([box()], [box()], [], [box()])).frames == [0, 1, 3]


def test_real_clips_have_faces_where_openface_saw_them(shared):
    finder = build_face_finder("opencv")
    for table in sorted((shared / "data/openface/featureextraction").glob("*.csv")):
        (path,) = (shared / "data/video").glob(f"{table.stem}.m*")
        video = read_video(path)
        indices = uniform_indices(video.num_frames)
        seen = pd.read_csv(table, skipinitialspace=True)["success"].to_numpy()[indices]
        faces = find_faces(video.frames(indices), finder)
        assert faces.frames == np.flatnonzero(seen).tolist(), path
        assert len(faces.crops) == seen.sum()
        if table.stem == "pyfeat_no_face":
            assert faces.frames == []
        if table.stem == "pyfeat_face_noface":
            assert faces.frames == [0, 1, 2, 3]
        if table.stem == "pyfeat_noface_face":
            assert faces.frames == [5, 6, 7]


@pytest.fixture(scope="module")
def portrait(shared) -> np.ndarray:
    """A face with what is around it, uint8 [200, 200, 3]."""
    (frame,) = read_video(shared / "data/video/pyfeat_single_face.mp4").frames([0])
    ((found,),) = build_face_finder("opencv").boxes(frame[None])
    half = round(found.side * 0.75)
    return cv2.resize(frame[round(found.y) - half :, round(found.x) - half :][: 2 * half, : 2 * half], (200, 200))


def pasted(*places: tuple[int, int, int], portrait: np.ndarray) -> np.ndarray:
    """A gray frame [300, 600, 3] with the portrait at each (left, top, side)."""
    frame = np.full((300, 600, 3), 120, np.uint8)
    for left, top, side in places:
        frame[top : top + side, left : left + side] = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    return frame


def test_a_face_is_found_in_every_frame_wherever_it_goes(portrait):
    places = [
        (20, 20, 150),
        (40, 60, 150),
        (400, 100, 150),
        (400, 100, 150),
        (380, 60, 200),
        (30, 20, 80),
        (30, 20, 80),
    ]
    found = build_face_finder("opencv").boxes(np.stack([pasted(place, portrait=portrait) for place in places]))
    for (left, top, side), boxes in zip(places, found, strict=True):
        (face,) = boxes
        assert (face.x, face.y) == pytest.approx((left + side / 2, top + side / 2), abs=0.1 * side)
        assert face.side == pytest.approx(side / 1.5, rel=0.2)


def test_who_comes_in_beside_a_face_that_is_followed_is_noticed(portrait):
    alone, both = [(20, 100, 90)], [(20, 100, 90), (300, 20, 240)]
    frames = np.stack([pasted(*places, portrait=portrait) for places in [alone] * 2 + [both] * 6])
    assert all(found.x > 300 for found in find_faces(frames, build_face_finder("opencv")).boxes)


def test_following_a_face_gives_the_boxes_that_single_frames_give(shared):
    finder = build_face_finder("opencv")
    for name in ("grid_lbbc2a.mpg", "opendbm_subj01_timepoint01.mp4"):
        video = read_video(shared / "data/video" / name)
        frames = video.frames(uniform_indices(video.num_frames))
        for frame, boxes in zip(frames, finder.boxes(frames), strict=True):
            (alone,) = finder.boxes(frame[None])
            assert len(boxes) == len(alone) == 1
            assert np.hypot(boxes[0].x - alone[0].x, boxes[0].y - alone[0].y) < 0.1 * alone[0].side
            assert boxes[0].side == pytest.approx(alone[0].side, rel=0.15)


def test_walls_shoulders_and_noise_are_no_faces(shared):
    finder = build_face_finder("opencv")
    for name in ("pyfeat_single_face.mp4", "opendbm_subj01_timepoint01.mp4", "grid_lrwp9a.mpg"):
        frames = read_video(shared / "data/video" / name).frames([0, 20, 40, 60])
        width, height = frames.shape[2] // 4, frames.shape[1] // 4
        for part in (frames[:, :, :width], frames[:, :, -width:], frames[:, -height:]):
            assert find_faces(part, finder).frames == []
    noise = np.random.default_rng(0).integers(0, 256, (4, 120, 160, 3), dtype=np.uint8)
    assert find_faces(noise, finder).frames == []


def test_a_face_that_fills_the_picture_is_found(shared):
    frame = read_video(shared / "data/video/pyfeat_single_face.mp4").frames([0])
    finder = build_face_finder("opencv")
    (whole,) = find_faces(frame, finder).boxes
    half = whole.side * 0.55
    top, left = round(whole.y - half), round(whole.x - half)
    close = frame[:, top : round(whole.y + half), left : round(whole.x + half)]
    (again,) = find_faces(close, finder).boxes
    assert again.side == pytest.approx(whole.side, rel=0.25)


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 2), (7, 7)])
def test_a_picture_of_any_shape_is_searched(shape):
    assert find_faces(np.full((2, *shape, 3), 90, np.uint8), build_face_finder("opencv")).frames == []


def test_the_finder_is_chosen_by_name(monkeypatch):
    assert build_face_finder("opencv").name == build_face_finder().name == "opencv"
    with pytest.raises(ValueError, match="'dlib' is not known: expected auto, opencv or mediapipe"):
        build_face_finder("dlib")
    with pytest.raises(ModuleNotFoundError, match="mediapipe is not installed: make an environment"):
        build_face_finder("mediapipe")
    monkeypatch.setenv("AFFECT_MEDIAPIPE_PYTHON", "/nowhere/python")
    with pytest.raises(ModuleNotFoundError, match="/nowhere/python is no program"):
        build_face_finder("auto")


def test_mediapipe_finds_the_faces_that_openface_saw(shared, mediapipe):
    finder = build_face_finder("auto")
    assert finder.name == "mediapipe"
    for name, seen in (("pyfeat_no_face.mp4", 0), ("pyfeat_face_noface.mov", 4), ("grid_bbaf2n.mpg", 8)):
        video = read_video(shared / "data/video" / name)
        frames = video.frames(uniform_indices(video.num_frames))
        faces = find_faces(frames, finder)
        assert faces.frames == list(range(seen))
        (theirs,) = find_faces(frames[:1], build_face_finder("opencv")).boxes or [None]
        for found in faces.boxes[:1]:
            assert np.hypot(found.x - theirs.x, found.y - theirs.y) < 0.2 * theirs.side
            assert found.side == pytest.approx(theirs.side, rel=0.3)


def test_face_arrays_of_other_tools_are_found_in_both_places(tmp_path):
    array = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.save(tmp_path / "flat.npy", array)
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep/deep.npy", array)
    for name in ("flat", "deep"):
        assert np.array_equal(load_face_array(tmp_path, name), array)  # colours in the order of the file


def test_a_bad_face_array_is_refused_in_one_sentence(tmp_path):
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 3)))
    np.save(tmp_path / "gray.npy", np.zeros((2, 4, 4), np.uint8))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "gray.npy").read_bytes()[:100])
    with Path(tmp_path / "archive.npy").open("wb") as handle:
        np.savez(handle, faces=np.zeros((2, 4, 4, 3), np.uint8))
    expected = {
        "float": r"found float64 \[2, 4, 4, 3\]",
        "gray": r"found uint8 \[2, 4, 4\]",
        "pickled": "cannot be read",
        "cut": "cannot be read",
        "archive": "cannot be read",
        "absent": "has no face array",
    }
    for name, reason in expected.items():
        with pytest.raises(MediaError, match=reason) as caught:
            load_face_array(tmp_path, name)
        assert f"{name}.npy" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        load_face_array(tmp_path, "../secret")
