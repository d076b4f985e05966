import math

import pytest

from affect.data.config import RunConfig
from affect.engine.schedule import learning_rate

RUN = RunConfig(init_lr=1e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=1000, max_epoch=30, iters_per_epoch=1000)


def test_warm_up_is_linear_and_the_cosine_ends_at_the_minimum():
    assert learning_rate(0, RUN) == 1e-6
    assert learning_rate(500, RUN) == pytest.approx(1e-6 + (1e-4 - 1e-6) / 2)
    assert learning_rate(1000, RUN) == pytest.approx(1e-4)
    assert learning_rate(30_000, RUN) == pytest.approx(1e-5)
    middle = 1e-5 + (1e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert learning_rate(15_500, RUN) == pytest.approx(middle)


def test_without_warm_up_it_starts_at_the_top():
    assert learning_rate(0, RunConfig(init_lr=3e-4)) == 3e-4
