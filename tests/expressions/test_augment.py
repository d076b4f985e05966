"""Augmented pictures: a pure function of the visit, within what was asked for, blind to the process's randomness."""

import random

import numpy as np
import pytest
import torch

from affect.expressions.augment import Augmentation
from affect.expressions.config import ImagesConfig
from affect.expressions.image_files import read_image, to_input
from affect.expressions.samples import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, InputSpec

SPEC = InputSpec(48, False, IMAGENET_MEAN, IMAGENET_STD)
EVERYTHING = {"crop": 0.3, "rotate": 15, "color_jitter": 0.4, "auto_augment": True, "random_erasing": 0.5}


@pytest.fixture
def photo(shared):
    """A real picture, larger than the network's input."""
    return read_image(shared / "data/images/pyfeat/single_face.jpg")


def augmented(picture, seeds, spec=SPEC, **settings):
    augment = Augmentation(ImagesConfig(**settings), spec)
    return [augment(picture, seed) for seed in seeds]


@pytest.mark.parametrize("spec", [SPEC, InputSpec(48, True, GRAY_MEAN, GRAY_STD)])
def test_every_setting_together_gives_finite_inputs_of_the_right_shape(photo, spec):
    for picture in augmented(photo, [(1, 0, i) for i in range(20)], spec, **EVERYTHING):
        assert picture.shape == (spec.channels, 48, 48) and picture.dtype == torch.float32 and picture.isfinite().all()


def test_same_visit_gives_the_same_picture_whatever_came_before(photo):
    (first,) = augmented(photo, [(7, 2, 5)], **EVERYTHING)
    torch.manual_seed(123)
    others = augmented(photo, [(7, 2, 6), (7, 3, 5), (8, 2, 5), (7, 2, 5)], **EVERYTHING)
    assert torch.equal(first, others[-1])
    assert not any(torch.equal(first, other) for other in others[:-1])


def test_no_random_state_of_the_process_moves(photo):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    augmented(photo, [(0, 0, i) for i in range(5)], **EVERYTHING)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == random.getstate()


def test_random_state_is_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        Augmentation(ImagesConfig(), SPEC)(np.zeros((4,), np.uint8), (0,))
    assert torch.equal(state, torch.get_rng_state())


def test_alone_it_flips_half_of_the_pictures_and_nothing_else(photo):
    plain = to_input(photo, SPEC)
    flipped = 0
    for picture in augmented(photo, [(0, 0, i) for i in range(200)]):
        straight, mirrored = ((picture - other).abs().max() < 0.05 for other in (plain, plain.flip(2)))
        assert straight != mirrored
        flipped += int(mirrored)
    assert 70 < flipped < 130


def test_erasing_follows_chance_and_area(photo):
    settings = {"random_erasing": 1.0, "erasing_scale": (0.05, 0.05)}
    erased = augmented(photo, [(0, 0, i) for i in range(30)], **settings)
    shares = [float((picture == 0).all(0).float().mean()) for picture in erased]
    assert all(0.035 < share < 0.065 for share in shares)
    sometimes = augmented(photo, [(0, 0, i) for i in range(200)], random_erasing=0.5)
    assert 70 < sum(bool((picture == 0).all(0).sum() > 20) for picture in sometimes) < 130


def test_crop_keeps_the_share_of_the_area():
    # the sum of a ramp's slope over the picture tells how much of it is seen
    ramp = np.repeat(np.tile(np.linspace(0, 255, 240).astype(np.uint8), (240, 1))[..., None], 3, axis=2)
    spec = InputSpec(48, False, (0.0,) * 3, (1.0,) * 3)
    sides = []
    for picture in augmented(ramp, [(0, 0, i) for i in range(100)], spec, crop=0.5):
        row = picture[0, 24]
        sides.append(float((row[-2] - row[1]).abs()) * 48 / 45)
    assert min(sides) > 0.5**0.5 - 0.03 and max(sides) < 1.03 and np.std(sides) > 0.05


def test_rotation_fills_the_corners_with_the_mean():
    white = np.full((48, 48, 3), 255, np.uint8)
    corners = [picture[:, 0, 0].abs().max() for picture in augmented(white, [(0, 0, i) for i in range(50)], rotate=45)]
    assert min(corners) < 0.02
