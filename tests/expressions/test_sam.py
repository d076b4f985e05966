"""Sharpness-aware minimisation: where it looks, what it moves by, and what it leaves as it was."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from affect.expressions.losses import ExpressionLoss
from affect.expressions.sam import SAM, kept_statistics
from affect.expressions.samples import ImageBatch
from affect.expressions.step import training_step

BASES = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batches(count: int, size: int = 8) -> list[ImageBatch]:
    rng = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        labels = torch.randint(3, (size,), generator=rng)
        images = torch.randn(size, 3, 2, 2, generator=rng, dtype=torch.double)
        found.append(ImageBatch([""] * size, images, labels, torch.eye(3)[labels]))
    return found


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def train(model, optimizer, steps=5, window=1, accelerator=None, **settings):
    data = batches(steps * window)
    reports = []
    for step in range(steps):
        part = data[step * window : (step + 1) * window]
        accelerator = accelerator or Accelerator(cpu=True)
        model.train()
        reports.append(training_step(model, optimizer, part, ExpressionLoss(), accelerator, (0, step), **settings))
    return reports


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_with_a_radius_of_nothing_it_is_the_other_optimizer(base, adaptive):
    plain, around = network(), network()
    train(plain, BASES[base](plain.parameters()))
    train(around, SAM(BASES[base](around.parameters()), 0.0, adaptive))
    assert torch.equal(flat(plain), flat(around))
    around = network()
    train(around, SAM(BASES[base](around.parameters()), 1e-9, adaptive))
    torch.testing.assert_close(flat(around), flat(plain), rtol=0, atol=1e-6)


def test_the_worst_point_is_one_radius_away_along_the_gradient():
    model = network()
    sam = SAM(BASES["sgd"](model.parameters()), rho=0.05)
    loss(model, batches(1)[0]).backward()
    gradient, before = torch.cat([w.grad.flatten() for w in model.parameters()]), flat(model)
    with sam.perturbed():
        moved = flat(model) - before
        assert all(weight.grad is None for weight in model.parameters())
    assert moved.norm().item() == pytest.approx(0.05)
    torch.testing.assert_close(moved, 0.05 * gradient / gradient.norm())
    assert torch.equal(flat(model), before)


def loss(model, batch):
    return ExpressionLoss()(model(batch.images), batch.targets)


def test_the_move_is_by_the_gradient_at_the_worst_point():
    """Of f(w) = w^4 / 4 at 1 with rho 0.5: the gradient is 1.5^3, so SGD goes to 1 - 0.1 * 3.375."""
    weight = nn.Parameter(torch.tensor([1.0]))
    sam = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)

    def closure():
        sam.zero_grad()
        value = weight**4 / 4
        value.backward()
        return value

    assert sam.step(closure).item() == 0.25
    assert weight.item() == pytest.approx(1 - 0.1 * 1.5**3)


def test_the_adaptive_worst_point_does_not_depend_on_the_scale_of_the_weights():
    """ASAM: with w scaled by 7 in a function that divides by 7, the values at the worst points are the same."""
    values = []
    for scale in (1.0, 7.0):
        weights = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.double) * scale)
        sam = SAM(torch.optim.SGD([weights], lr=0.1), rho=0.3, adaptive=True)
        value = ((weights / scale) ** 3).sum()
        value.backward()
        with sam.perturbed():
            values.append(((weights / scale) ** 3).sum().item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0] != pytest.approx(value.item(), rel=1e-3)


def test_a_gradient_of_nothing_moves_nothing():
    weight = nn.Parameter(torch.ones(3))
    sam = SAM(torch.optim.SGD([weight], lr=0.1))
    (weight * 0).sum().backward()
    with sam.perturbed():
        assert torch.equal(weight, torch.ones(3))


def test_an_error_at_the_worst_point_leaves_the_weights_as_they_were():
    model = network()
    before, sam = flat(model), SAM(BASES["adam"](model.parameters()), rho=0.5)
    loss(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="out of memory"), sam.perturbed():
        raise RuntimeError("out of memory")
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("base", BASES)
def test_its_state_holds_the_other_optimizers_moments_to_the_bit(base):
    whole, broken = network(), network()
    train(whole, SAM(BASES[base](whole.parameters())), steps=6)
    first = SAM(BASES[base](broken.parameters()))
    train(broken, first, steps=3)
    state = copy.deepcopy(first.state_dict())
    assert all(moments for moments in state["state"].values())
    assert len(state["state"]) == len(list(broken.parameters()))
    second = SAM(BASES[base](broken.parameters()))
    second.load_state_dict(state)
    data = batches(6)
    for step in range(3, 6):
        training_step(broken, second, [data[step]], ExpressionLoss(), Accelerator(cpu=True), (0, step))
    assert torch.equal(flat(whole), flat(broken))


def test_the_rate_of_its_groups_is_that_of_the_other_optimizer():
    model = network()
    sam = SAM(BASES["sgd"](model.parameters()))
    sam.load_state_dict(copy.deepcopy(sam.state_dict()))
    sam.param_groups[0]["lr"] = 0.0
    before = flat(model)
    train(model, sam, steps=2)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_accumulated_window_is_one_batch_of_all_its_images(adaptive):
    """Without batch norm and dropout, whose values depend on the parts."""
    one, parts = (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double() for _ in range(2))
    parts.load_state_dict(one.state_dict())
    window = batches(3)
    together = ImageBatch(
        [""] * 24, *(torch.cat([getattr(b, key) for b in window]) for key in ("images", "labels", "targets"))
    )
    for model, part in ((one, [together]), (parts, window)):
        sam = SAM(BASES["sgd"](model.parameters()), 0.5, adaptive)
        training_step(model, sam, part, ExpressionLoss(), Accelerator(cpu=True), (0,))
    torch.testing.assert_close(flat(one), flat(parts), rtol=1e-12, atol=0)


def test_batch_norms_see_each_image_once_and_dropout_is_the_same_at_both_points():
    plain, around = network(), network()
    train(plain, BASES["sgd"](plain.parameters()), steps=1, window=2)
    seen = []
    around[4].register_forward_hook(lambda module, given, out: seen.append(out == 0))
    train(around, SAM(BASES["sgd"](around.parameters()), 1e-12), steps=1, window=2)
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


def test_scaled_gradients_move_the_weights_as_unscaled_ones_do():
    plain, half = network().float(), network().float()
    for model, accelerator in ((plain, Accelerator(cpu=True)), (half, scaled(2.0**16))):
        model.register_forward_pre_hook(lambda module, given: given[0].float())
        train(model, SAM(BASES["adam"](model.parameters())), accelerator=accelerator, window=2, max_grad_norm=0.1)
    assert torch.equal(flat(plain), flat(half))  # a scale that is a power of two rounds nothing


def test_a_gradient_that_overflows_moves_nothing_and_lowers_the_scale():
    model = network().float()
    model.register_forward_pre_hook(lambda module, given: given[0].float())
    accelerator, before = scaled(2.0**126), flat(model)
    model[5].weight.register_hook(lambda gradient: gradient * 1e6)
    sam = SAM(BASES["adam"](model.parameters()), rho=0.5)
    (report,) = train(model, sam, steps=1, accelerator=accelerator)
    assert report.finite  # the loss is; the next scale will do
    assert torch.equal(flat(model), before)
    assert accelerator.scaler.get_scale() == 2.0**125
    assert not sam.state


@pytest.mark.parametrize("around", [False, True])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_reported(around):
    model, before = network(), None
    optimizer = BASES["adam"](model.parameters())
    optimizer, before = SAM(optimizer) if around else optimizer, flat(model)
    (bad,) = batches(1)
    bad.images[2] = float("inf")
    report = training_step(model, optimizer, [*batches(1), bad], ExpressionLoss(), Accelerator(cpu=True), (0,))
    assert not report.finite
    assert [value.isfinite().item() for value in report.own_losses] == [True, False]
    assert torch.equal(flat(model), before)


def test_a_gradient_that_is_not_finite_is_reported_though_the_loss_is():
    weight = nn.Linear(12, 3)
    weight.weight.register_hook(lambda gradient: gradient * float("nan"))
    model = nn.Sequential(nn.Flatten(), weight).double()
    (report,) = train(model, BASES["sgd"](model.parameters()), steps=1)
    assert not report.finite
    assert report.loss == pytest.approx(report.own_losses[0].item())
