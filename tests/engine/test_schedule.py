"""Rates by step against their formulas and torch's schedulers, and where the warm-up ends."""

import math
from itertools import pairwise

import pytest
import torch

from affect.core.config import RunSettings
from affect.engine.schedule import falls, learning_rate

STEPS = 7


def test_a_warm_up_of_steps_is_linear_and_the_cosine_ends_at_the_minimum():
    run = RunSettings(init_lr=1e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=1000)

    def rate(step):
        return learning_rate(step, 1000, 30_000, run)

    assert rate(0) == 1e-6
    assert rate(500) == pytest.approx(1e-6 + (1e-4 - 1e-6) / 2)
    assert rate(1000) == pytest.approx(1e-4)
    assert rate(30_000) == pytest.approx(1e-5)
    middle = 1e-5 + (1e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert rate(15_500) == pytest.approx(middle)


def test_without_warm_up_it_starts_at_the_top():
    assert learning_rate(0, 1000, 30_000, RunSettings(init_lr=3e-4)) == 3e-4


def rates(count: int, **settings) -> list[float]:
    run = RunSettings(init_lr=0.1, **settings)
    return [learning_rate(step, STEPS, 10 * STEPS, run) for step in range(count)]


def torchs(scheduler, count: int, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, found = scheduler(optimizer, **settings), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_by_step_and_by_epoch_are_torchs():
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    by_step = torchs(cosine, 10 * STEPS, T_max=10 * STEPS, eta_min=0.01)
    assert rates(10 * STEPS, scheduler="cosine", min_lr=0.01) == pytest.approx(by_step)
    by_epoch = torchs(cosine, 10, T_max=10, eta_min=0.01)
    expected = [rate for rate in by_epoch for _ in range(STEPS)]
    assert rates(10 * STEPS, scheduler="cosine", schedule_by="epoch", min_lr=0.01) == pytest.approx(expected)


def test_linear_is_torchs():
    linear = torchs(torch.optim.lr_scheduler.LinearLR, 70, start_factor=1.0, end_factor=0.1, total_iters=10 * STEPS)
    assert rates(70, scheduler="linear", min_lr=0.01) == pytest.approx(linear)


def test_exponential_by_epoch_is_torchs_and_by_step_meets_it_at_the_epochs():
    by_epoch = torchs(torch.optim.lr_scheduler.ExponentialLR, 10, gamma=0.9)
    expected = [rate for rate in by_epoch for _ in range(STEPS)]
    assert rates(10 * STEPS, scheduler="exponential", schedule_by="epoch", gamma=0.9) == pytest.approx(expected)
    by_step = rates(10 * STEPS, scheduler="exponential", gamma=0.9)
    assert by_step[::STEPS] == pytest.approx(by_epoch)
    assert all(b < a for a, b in pairwise(by_step))
    assert min(rates(10 * STEPS, scheduler="exponential", gamma=0.5, min_lr=0.02)) == 0.02


def test_constant_stays():
    assert set(rates(30, scheduler="constant")) == {0.1}


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "exponential", "plateau"])
@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("warmup", [0.5, 2])
def test_a_warm_up_of_epochs_rises_in_a_line_to_the_full_rate(scheduler, by, warmup):
    found = rates(4 * STEPS, scheduler=scheduler, schedule_by=by, warmup_epochs=warmup)
    steps = round(warmup * STEPS)
    assert found[:steps] == pytest.approx([0.1 * (k + 1) / (steps + 1) for k in range(steps)])
    assert found[steps] == pytest.approx(0.1)
    assert max(found) == found[steps]


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_falls_when_torchs_does(patience):
    losses = [3.0, 2.0, 2.0, 2.5, 1.9, 1.9, 1.9, 1.9, 1.9, 1.8, 2, 2, 2, 2, 2, 2, float("nan"), 1.7, 5, 5]
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=0.0)
    run = RunSettings(init_lr=0.1, scheduler="plateau", plateau_factor=0.5, plateau_patience=patience)
    for epoch, loss in enumerate(losses):
        assert learning_rate(epoch * STEPS, STEPS, 50 * STEPS, run, losses[:epoch]) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        ), epoch
        reference.step(loss)
    assert falls(losses, patience) == round(math.log2(0.1 / optimizer.param_groups[0]["lr"])) > 0


def test_plateau_never_goes_below_the_lowest_rate():
    run = RunSettings(init_lr=0.1, scheduler="plateau", plateau_patience=0, min_lr=0.03)
    assert learning_rate(140, STEPS, 50 * STEPS, run, [1.0] * 20) == 0.03
