"""The counting rules, on layers small enough to count by hand."""

import pytest
import torch
from torch import nn

from affect.expressions.models.transformer import Attention
from benchmarks.counting import count_macs, count_parameters


@pytest.mark.parametrize(
    ("layer", "images", "plain", "with_norms"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 5, 5), 6 * 25 * 4 * 9, 6 * 25 * 4 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, groups=4), (2, 4, 5, 5), 2 * 8 * 4 * 9, 2 * 8 * 4 * 9),
        (nn.Linear(7, 3), (2, 5, 7), 2 * 5 * 7 * 3, 2 * 5 * 7 * 3),
        (nn.BatchNorm2d(4), (1, 4, 5, 5), 0, 4 * 100),
        (nn.LayerNorm(5), (1, 4, 5, 5), 0, 4 * 100),
        (nn.PReLU(4), (1, 4, 5, 5), 0, 100),
        (nn.ReLU(), (1, 4, 5, 5), 0, 0),
    ],
)
def test_layers_count_as_the_rules_say(layer, images, plain, with_norms):
    model = nn.Sequential(layer)
    assert count_macs(model, torch.zeros(images)) == plain
    assert count_macs(model, torch.zeros(images), "with_norms") == with_norms


def test_softmax_of_a_window_counts_with_the_norms_only():
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(16, heads=2, qkv_bias=True, window=3)

        def forward(self, x):
            return self.attention(x, x)

    linear = 9 * 16 * 32 + 9 * 16 * 16
    assert count_macs(Window(), torch.zeros(1, 9, 16)) == linear
    assert count_macs(Window(), torch.zeros(1, 9, 16), "with_norms") == linear + 2 * 9 * (3 * 9 - 1)


@pytest.mark.parametrize("training", [False, True])
def test_counting_leaves_the_network_as_it_was(training):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, torch.randn(2, 3, 4, 4), "with_norms")
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model)


def test_parameters_count_once_and_frozen_ones_do_not_learn():
    shared = nn.Linear(3, 2)
    frozen = nn.Linear(5, 1).requires_grad_(False)
    counted = count_parameters(nn.ModuleList([shared, shared, frozen]))
    assert (counted.total, counted.trainable) == (8 + 6, 8)
