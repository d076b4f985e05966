"""Faces in still pictures: all are found, the main one comes out upright, a picture without one gives none."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from affect.faces.align import find_all_faces, straighten, straighten_face
from affect.faces.finders import Box, build_face_finder


@pytest.fixture(scope="module")
def finder():
    return build_face_finder("opencv")


def photo(shared, name):
    return np.array(ImageOps.exif_transpose(Image.open(shared / "data/images/pyfeat" / name)).convert("RGB"))


def turned(picture, degrees):
    """Return a picture turned with the clock."""
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1)
    return cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)


def misfit(crop, upright):
    """Return by how many degrees and pixels a crop lies otherwise than another of the same face (by correlation)."""
    a, b = (
        cv2.GaussianBlur(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), (0, 0), 2).astype(np.float32) for p in (upright, crop)
    )
    inside = np.zeros(a.shape, np.uint8)
    inside[30:-30, 30:-30] = 255
    found = np.eye(2, 3, dtype=np.float32)
    steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-5)
    _, found = cv2.findTransformECC(a, b, found, cv2.MOTION_EUCLIDEAN, steps, inside, 5)
    centre = np.array([112, 112])
    return math.degrees(math.atan2(found[1, 0], found[0, 0])), np.abs(
        found[:, :2] @ centre + found[:, 2] - centre
    ).max()


@pytest.mark.parametrize("degrees", [-25, -15, 15, 25])
def test_turned_face_comes_out_upright_again(shared, finder, degrees):
    picture = photo(shared, "single_face.jpg")
    upright, crop = straighten(picture, finder), straighten(turned(picture, degrees), finder)
    assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8
    angle, offset = misfit(crop, upright)
    assert abs(angle) < 5 and offset < 15


@pytest.mark.parametrize("degrees", [-32, -20, 20, 35])
def test_a_face_of_many_is_cut_out_as_the_main_one_is(shared, finder, degrees):
    picture = turned(photo(shared, "single_face.jpg"), degrees)
    box = find_all_faces(picture, finder)[0]
    assert (straighten_face(picture, box) == straighten(picture, finder)).all()


def test_misfit_would_see_a_face_that_is_not_turned_back(shared, finder):
    picture = photo(shared, "single_face.jpg")
    (box,) = find_all_faces(picture, finder)
    left, top = int(box.x) - 112, int(box.y) - 112
    as_they_are = (each[top : top + 224, left : left + 224] for each in (turned(picture, 12), picture))
    angle, _ = misfit(*as_they_are)
    assert abs(abs(angle) - 12) < 2


def test_four_faces_that_show_eyes_are_found_largest_first(shared, finder):
    boxes = find_all_faces(photo(shared, "multi_face.jpg"), finder)
    assert len(boxes) == 4 and [box.side for box in boxes] == sorted((box.side for box in boxes), reverse=True)
    for x, y in ((736, 354), (368, 294), (577, 364), (478, 258)):
        assert any(abs(box.x - x) < 15 and abs(box.y - y) < 15 for box in boxes)


def test_small_faces_in_a_large_picture_are_found(shared, finder):
    group = photo(shared, "multi_face.jpg")
    large = np.full((1300, 1950, 3), 128, np.uint8)
    large[600:1267, 900:1900] = group
    boxes = find_all_faces(large, finder)
    assert len(boxes) == 4 and min(box.side for box in boxes) < 0.08 * 1300
    assert all(900 < box.x < 1900 and 600 < box.y < 1267 for box in boxes)


def test_photo_without_a_face_gives_none(shared, finder):
    picture = photo(shared, "free-mountain-vector-01.jpg")
    assert straighten(picture, finder) is None and find_all_faces(picture, finder) == []


@pytest.mark.parametrize("shape", [(64, 48), (1, 1), (5, 20_000), (20_000, 5)])
def test_picture_of_any_shape_without_a_face_gives_none(finder, shape):
    picture = np.zeros((*shape, 3), np.uint8)
    assert straighten(picture, finder) is None and find_all_faces(picture, finder) == []


def test_half_covered_tilted_face_is_found(shared, finder):
    assert len(find_all_faces(photo(shared, "Image_with_alpha.png"), finder)) == 1


def test_box_over_the_edge_and_without_eyes_still_gives_a_square():
    picture = np.full((40, 30, 3), 77, np.uint8)
    crop = straighten_face(picture, Box(0, 0, 60), size=48)
    assert crop.shape == (48, 48, 3) and (crop == 77).all()


def test_most_real_faces_are_found(shared, finder):
    files = sorted((shared / "data/images/muxspace").glob("*/*.jpg"))[::24]
    found = [straighten(np.array(Image.open(file).convert("RGB")), finder) for file in files]
    assert sum(crop is not None for crop in found) >= 0.75 * len(files)


def test_straightening_twice_changes_little(shared, finder):
    once = straighten(photo(shared, "single_face.jpg"), finder)
    angle, _ = misfit(straighten(once, finder), once)
    assert abs(angle) < 4
