"""Calibration: what is known of the expected error, and of bins that nothing fell into."""

import numpy as np
import pytest
from PIL import Image

from affect.expressions.calibration import draw_reliability, reliability


def test_a_network_that_is_right_as_often_as_it_says_has_almost_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 200_000)
    assert reliability(confidence, rng.uniform(size=confidence.size) < confidence).ece < 0.005


def test_always_sure_and_always_wrong_is_the_greatest_error():
    assert reliability(np.ones(10), np.zeros(10)).ece == 1
    assert reliability(np.ones(10), np.ones(10)).ece == 0


def test_the_error_is_the_mean_gap_weighted_by_the_answers_of_a_bin():
    # bins of 0.2: (0.4, 0.6] has 0.5 and 0.6, one right; (0.8, 1] has 0.9 twice and 1.0, one right
    found = reliability(np.array([0.5, 0.6, 0.9, 0.9, 1.0]), np.array([1, 0, 1, 0, 0]), bins=5)
    assert found.counts.tolist() == [0, 0, 2, 0, 3]
    assert found.accuracy[[2, 4]] == pytest.approx([1 / 2, 1 / 3])
    assert found.confidence[[2, 4]] == pytest.approx([0.55, 2.8 / 3])
    assert found.ece == pytest.approx((2 * 0.05 + 3 * 0.6) / 5)


def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first():
    found = reliability(np.array([0.0, 0.5, 1.0]), np.ones(3), bins=2)
    assert found.counts.tolist() == [2, 1]


def test_empty_bins_are_nan_and_do_not_count():
    found = reliability(np.array([0.95]), np.array([True]))
    assert found.counts.sum() == 1 and np.isnan(found.accuracy).sum() == np.isnan(found.confidence).sum() == 14
    assert found.ece == pytest.approx(0.05)
    rows = found.rows()
    assert len(rows) == 15 and rows[-1]["n"] == 1 and rows[0]["n"] == 0


def test_without_answers_there_is_no_error_to_state():
    assert np.isnan(reliability(np.empty(0), np.empty(0)).ece)


def test_answers_without_a_number_are_counted_apart():
    found = reliability(np.array([np.nan, 1.0]), np.array([True, True]))
    assert (found.without, found.counts.sum(), found.ece) == (1, 1, 0)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.inf])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match="expected confidences of 0 to 1"):
        reliability(np.array([value]), np.array([True]))


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_diagram_is_drawn_of_many_answers_and_of_none(tmp_path, size):
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 1, size)
    path = draw_reliability(tmp_path / "new" / "r.png", reliability(confidence, rng.uniform(size=size) < 0.6), "x")
    assert Image.open(path).size[0] > 300
