"""Probabilities of faces and what is made of them."""

import numpy as np
import pytest
import torch

from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.image_files import to_input
from affect.expressions.models import build_model
from affect.expressions.network_file import ModelCard
from affect.expressions.predict import name_expressions, near_uniform, predict, uniform_warning

CLASSES = ("angry", "happy", "sad", "neutral")
PLACE = (1, 2, 30, 40)


def card(multi_label=False, classes=CLASSES):
    config = ImageModelConfig(arch="compact", width=0.25)
    return ModelCard(config, classes, input_spec(config, None, None), multi_label)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(card().model, len(CLASSES)).eval()


def faces(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (30 + 7 * i, 41, 3), np.uint8) for i in range(count)]


def test_probabilities_are_the_softmax_of_the_network_whatever_the_batch(model):
    found = predict(model, card(), faces(5), batch_size=2)
    assert found.shape == (5, 4) and found.dtype == np.float32 and found.sum(1) == pytest.approx(np.ones(5))
    with torch.no_grad():
        each = [model(to_input(face, card().input)[None]).softmax(1)[0].numpy() for face in faces(5)]
    assert found == pytest.approx(np.array(each), abs=1e-6)


def test_independent_classes_are_sigmoids(model):
    with torch.no_grad():
        expected = model(to_input(faces(1)[0], card().input)[None]).sigmoid().numpy()
    assert predict(model, card(multi_label=True), faces(1)) == pytest.approx(expected, abs=1e-6)


def test_a_flipped_view_is_averaged_so_that_mirror_images_get_the_same(model):
    face = faces(1)[0]
    mirrored = face[:, ::-1]
    one, other = (predict(model, card(), [picture])[0] for picture in (face, mirrored))
    both = [predict(model, card(), [picture], flip=True)[0] for picture in (face, mirrored)]
    assert np.abs(one - other).max() > 1e-5
    assert both[0] == pytest.approx((one + other) / 2, abs=1e-6) and both[1] == pytest.approx(both[0], abs=1e-6)


def test_no_faces_give_no_rows(model):
    assert predict(model, card(), []).shape == (0, 4)
    assert name_expressions(np.zeros((0, 4)), card(), []) == []


def test_a_network_that_gives_nan_is_refused():
    broken = build_model(card().model, len(CLASSES)).eval()
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    with pytest.raises(ValueError, match="gives NaN instead of probabilities"):
        predict(broken, card(), faces(1))


def test_the_likeliest_class_names_a_face():
    (face,) = name_expressions(np.array([[0.1, 0.6, 0.2, 0.1]]), card(), [PLACE])
    assert (face.corners, face.label, face.probability, face.near_uniform) == (PLACE, "happy", 0.6, False)
    assert face.as_json() == {
        "box": [1, 2, 30, 40],
        "label": "happy",
        "probability": 0.6,
        "probabilities": {"angry": 0.1, "happy": 0.6, "sad": 0.2, "neutral": 0.1},
        "near_uniform": False,
    }


def test_all_independent_classes_that_are_seen_name_a_face_the_likeliest_first():
    rows = np.array([[0.6, 0.9, 0.2, 0.1], [0.1, 0.3, 0.2, 0.0]])
    first, second = name_expressions(rows, card(multi_label=True), [PLACE, PLACE])
    assert (first.label, first.probability) == ("happy, angry", 0.9)
    assert (second.label, second.probability) == ("none", 0.3)


@pytest.mark.parametrize(
    ("row", "flat"),
    [([0.25] * 4, True), ([0.34, 0.22, 0.22, 0.22], True), ([0.36, 0.22, 0.21, 0.21], False)],
)
def test_a_distribution_is_near_uniform_within_the_margin_above_chance(row, flat):
    assert near_uniform(np.array([row]), card(), 0.1).tolist() == [flat]


def test_independent_classes_are_near_uniform_around_one_half_and_one_class_never_is():
    rows = np.array([[0.5, 0.45, 0.55, 0.5], [0.0, 0.1, 0.1, 0.05]])
    assert near_uniform(rows, card(multi_label=True), 0.1).tolist() == [True, False]
    assert near_uniform(np.ones((1, 1)), card(classes=("face",)), 0.1).tolist() == [False]


def test_the_warning_is_one_line_that_names_checkpoint_and_pictures():
    assert uniform_warning("best", [], 3, card()) is None
    sentence = uniform_warning("best", ["a.jpg", "a.jpg", "b.jpg"], 7, card())
    assert sentence.startswith("3 of 7 faces") and "1/4" in sentence and "a.jpg, b.jpg:" in sentence
    assert "best may be untrained" in sentence and "\n" not in sentence
    assert "and 5 more" in uniform_warning("best", [f"{i}.jpg" for i in range(8)], 8, card())
