"""Sharpness-aware minimisation: where it looks, what the optimizer moves by, and what stays as it was."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from affect.core.config import RunSettings
from affect.engine.sam import kept_statistics, worst_point
from affect.engine.step import training_step
from toy_task import Samples, ToyTask, batches, network

BASES = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
}


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def train(model, optimizer, steps=5, window=1, accelerator=None, **settings):
    task, data = ToyTask(RunSettings(**settings), model), batches(steps * window)
    accelerator = accelerator or Accelerator(cpu=True)
    model.train()
    return [
        training_step(task, model, optimizer, data[step * window : (step + 1) * window], accelerator, step)
        for step in range(steps)
    ]


def sam(rho=0.05, adaptive=False):
    return {"sam": True, "sam_rho": rho, "sam_adaptive": adaptive}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_with_a_radius_of_next_to_nothing_it_is_the_other_optimizer(base, adaptive):
    plain, around = network(), network()
    train(plain, BASES[base](plain.parameters()))
    train(around, BASES[base](around.parameters()), **sam(1e-9, adaptive))
    torch.testing.assert_close(flat(around), flat(plain), rtol=0, atol=1e-6)
    assert not torch.equal(flat(plain), flat(network()))


def backward(model, batch) -> torch.Tensor:
    loss, _ = ToyTask(RunSettings()).loss(model, batch)
    loss.backward()
    return loss


def test_the_worst_point_is_one_radius_away_along_the_gradient():
    model = network()
    backward(model, batches(1)[0])
    gradient, before = torch.cat([w.grad.flatten() for w in model.parameters()]), flat(model)
    with worst_point(list(model.parameters()), rho=0.05):
        moved = flat(model) - before
        assert all(weight.grad is None for weight in model.parameters())
    assert moved.norm().item() == pytest.approx(0.05)
    torch.testing.assert_close(moved, 0.05 * gradient / gradient.norm())
    assert torch.equal(flat(model), before)


class Powers(nn.Module):
    """w^4 / 4, whatever is read."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))


class PowersTask(ToyTask):
    def loss(self, model, batch):
        return (model.weight**4 / 4).sum(), {}


def test_the_move_is_by_the_gradient_at_the_worst_point():
    """Of f(w) = w^4 / 4 at 1 with rho 0.5: the gradient is 1.5^3, so SGD goes to 1 - 0.1 * 3.375."""
    model = Powers()
    task = PowersTask(RunSettings(**sam(0.5)), model)
    report = training_step(task, model, torch.optim.SGD(model.parameters(), lr=0.1), batches(1), Accelerator(cpu=True))
    assert report.loss == 0.25
    assert model.weight.item() == pytest.approx(1 - 0.1 * 1.5**3)


def test_the_adaptive_worst_point_does_not_depend_on_the_scale_of_the_weights():
    """ASAM: with w scaled by 7 in a function that divides by 7, the values at the worst points are the same."""
    values = []
    for scale in (1.0, 7.0):
        weights = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.double) * scale)
        value = ((weights / scale) ** 3).sum()
        value.backward()
        with worst_point([weights], 0.3, adaptive=True):
            values.append(((weights / scale) ** 3).sum().item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0] != pytest.approx(value.item(), rel=1e-3)


def test_a_gradient_of_nothing_moves_nothing():
    weight = nn.Parameter(torch.ones(3))
    (weight * 0).sum().backward()
    with worst_point([weight], 0.05):
        assert torch.equal(weight, torch.ones(3))


def test_an_error_at_the_worst_point_leaves_the_weights_as_they_were():
    model = network()
    before = flat(model)
    backward(model, batches(1)[0])
    with pytest.raises(RuntimeError, match="out of memory"), worst_point(list(model.parameters()), 0.5):
        assert not torch.equal(flat(model), before)
        raise RuntimeError("out of memory")
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_accumulated_window_is_one_batch_of_all_its_rows(adaptive):
    """Without batch norm and dropout, whose values depend on the parts."""
    one, parts = (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double() for _ in range(2))
    parts.load_state_dict(one.state_dict())
    window = [*batches(2), *batches(1, size=4, first=2)]
    together = Samples(*(torch.cat([getattr(b, key) for b in window]) for key in ("inputs", "labels")))
    for model, part in ((one, [together]), (parts, window)):
        task = ToyTask(RunSettings(**sam(0.5, adaptive)), model)
        training_step(task, model, BASES["sgd"](model.parameters()), part, Accelerator(cpu=True))
    torch.testing.assert_close(flat(one), flat(parts), rtol=1e-6, atol=0)  # shares are 32-bit numbers


def test_batch_norms_see_each_row_once_and_dropout_is_the_same_at_both_points():
    plain, around = network(), network()
    train(plain, BASES["sgd"](plain.parameters()), steps=1, window=2)
    seen = []
    around[4].register_forward_hook(lambda module, given, out: seen.append(out == 0))
    train(around, BASES["sgd"](around.parameters()), steps=1, window=2, **sam(1e-12))
    for one, two in zip(plain.buffers(), around.buffers(), strict=True):
        assert torch.equal(one, two)
    assert around[2].num_batches_tracked == 2
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_batch_norms_still_use_the_batch_when_their_running_statistics_are_kept():
    norm = nn.BatchNorm1d(4)
    with kept_statistics(norm):
        out = norm(torch.randn(64, 4) * 5 + 3)
    assert out.mean().abs() < 1e-5
    assert torch.equal(norm.running_mean, torch.zeros(4))
    norm(torch.randn(64, 4))
    assert norm.num_batches_tracked == 1


def scaled(scale: float) -> Accelerator:
    """Return an accelerator with the scaler that float16 has on a GPU; it runs on the CPU as well."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


def floats() -> nn.Module:
    model = network().float()
    model.register_forward_pre_hook(lambda module, given: given[0].float())
    return model


@pytest.mark.parametrize("settings", [{}, sam()])
def test_scaled_gradients_move_the_weights_as_unscaled_ones_do(settings):
    plain, half = floats(), floats()
    reports = [
        train(
            model, BASES["adam"](model.parameters()), accelerator=accelerator, window=2, max_grad_norm=0.1, **settings
        )
        for model, accelerator in ((plain, Accelerator(cpu=True)), (half, scaled(2.0**16)))
    ]
    assert torch.equal(flat(plain), flat(half))  # a scale that is a power of two rounds nothing
    assert [report.grad_norm for report in reports[0]] == [report.grad_norm for report in reports[1]]


@pytest.mark.parametrize("settings", [{}, sam(0.5)])
def test_a_gradient_that_overflows_moves_nothing_and_lowers_the_scale(settings):
    model = floats()
    accelerator, before = scaled(2.0**126), flat(model)
    model[5].weight.register_hook(lambda gradient: gradient * 1e6)
    optimizer = BASES["adam"](model.parameters())
    (report,) = train(model, optimizer, steps=1, accelerator=accelerator, **settings)
    assert not report.moved  # the next scale will do
    assert torch.equal(flat(model), before)
    assert accelerator.scaler.get_scale() == 2.0**125
    assert not optimizer.state


@pytest.mark.parametrize("settings", [{}, sam()])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_reported(settings):
    model = network()
    optimizer, before = BASES["adam"](model.parameters()), flat(model)
    (bad,) = batches(1)
    bad.inputs[2] = float("inf")
    task = ToyTask(RunSettings(**settings), model)
    report = training_step(task, model, optimizer, [*batches(1), bad], Accelerator(cpu=True))
    assert not report.moved
    assert [value.isfinite().item() for value in report.own_losses] == [True, False]
    assert torch.equal(flat(model), before)


def test_a_gradient_that_is_not_finite_is_reported_though_the_loss_is():
    weight = nn.Linear(12, 3)
    weight.weight.register_hook(lambda gradient: gradient * float("nan"))
    model = nn.Sequential(nn.Flatten(), weight).double()
    (report,) = train(model, BASES["sgd"](model.parameters()), steps=1)
    assert not report.moved
    assert report.loss == pytest.approx(report.own_losses[0].item())
