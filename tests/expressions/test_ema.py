"""The moving average of weights."""

import torch
from torch import nn

from affect.expressions.ema import WeightAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_the_average_follows_its_definition_and_forgets_the_start_soon():
    model = network()
    average, expected = WeightAverage(model, 0.9), model[0].weight.detach().clone()
    for n in range(1, 120):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 4))
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
        average.update(model)
        torch.testing.assert_close(average.model[0].weight, expected)
    assert decay == 0.9


def test_buffers_are_copied_whole_numbers_included():
    model = network()
    average = WeightAverage(model, 0.5)
    model(torch.randn(8, 4))
    average.update(model)
    assert average.model[1].num_batches_tracked == 1
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)


def test_the_average_is_no_part_of_the_model_and_asks_for_no_gradient():
    model = network()
    average = WeightAverage(model, 0.5)
    before = average.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(average.model[0].weight, before)
    assert not any(weight.requires_grad for weight in average.model.parameters())
    assert not average.model.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_its_state_goes_on_to_the_bit():
    def walk(model, average, steps):
        for step in steps:
            torch.manual_seed(step)
            with torch.no_grad():
                model[0].weight.add_(torch.randn(4, 4))
            average.update(model)

    whole, broken = network(), network()
    one, first = WeightAverage(whole, 0.9), WeightAverage(broken, 0.9)
    walk(whole, one, range(6))
    walk(broken, first, range(3))
    second = WeightAverage(network(), 0.9)
    second.load_state_dict(first.state_dict())
    walk(broken, second, range(3, 6))
    assert second.updates == 6
    assert torch.equal(one.model[0].weight, second.model[0].weight)
