"""Balanced batches: every class equally often, every image before any comes again, the same after a resume."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from affect.expressions.balanced import ClassBalancedBatches

LABELS = np.array([0] * 50 + [1] * 7 + [3] * 3)  # nobody has class 2


def batches(*args, **kwargs):
    return ClassBalancedBatches(len(LABELS), *args, labels=LABELS, **kwargs)


def draws(*args, **kwargs):
    return list(chain.from_iterable(batches(*args, **kwargs)))


def test_every_class_comes_equally_often():
    counts = Counter(LABELS[draw.index] for draw in draws(8, 0, 0, 75))
    assert counts == {0: 200, 1: 200, 3: 200}
    for start in range(0, 600, 3):
        assert sorted(LABELS[draw.index] for draw in draws(3, 0, start // 3, start // 3 + 1)) == [0, 1, 3]


def test_order_of_classes_is_shuffled():
    assert len({tuple(LABELS[draw.index] for draw in batch) for batch in batches(3, 0, 0, 40)}) == 6


@pytest.mark.parametrize(("label", "size"), [(0, 50), (1, 7), (3, 3)])
def test_no_image_comes_again_before_all_of_its_class_came(label, size):
    seen = [draw for draw in draws(3, 5, 0, 2 * size) if LABELS[draw.index] == label]
    first, second = [draw.index for draw in seen[:size]], [draw.index for draw in seen[size:]]
    assert sorted(first) == sorted(second) == np.flatnonzero(label == LABELS).tolist()
    assert {draw.cycle for draw in seen[:size]} == {0} and {draw.cycle for draw in seen[size:]} == {1}
    assert size < 7 or first != second


def test_resumed_run_goes_on_with_the_same_batches():
    whole = list(batches(8, 1, 0, 20))
    assert list(batches(8, 1, 13, 20)) == whole[13:]
    assert len(batches(8, 1, 13, 20)) == 7
    assert list(batches(8, 2, 0, 20)) != whole


def test_processes_share_the_row_of_one():
    alone = draws(8, 1, 0, 10)
    shared = [
        draw for step in range(10) for rank in range(2) for draw in draws(4, 1, step, step + 1, rank=rank, world=2)
    ]
    assert shared == alone
