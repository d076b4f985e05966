"""Folded networks answer as they did, and have fewer parts."""

import pytest
import torch
from torch import nn

from affect.expressions.config import ImageModelConfig
from affect.expressions.models import build_model, for_prediction

NETWORKS = {
    "compact": {"width": 0.5},
    "poster_v2": {"width": 0.1},
    "ir50_vit": {"width": 0.1, "img_size": 48, "depth": 2},
    "timm": {"backbone": "resnet18", "img_size": 48},
}


def trained(arch: str, **settings) -> tuple[nn.Module, torch.Tensor]:
    """Return a network whose norms have seen something, and pictures."""
    torch.manual_seed(0)
    config = ImageModelConfig(arch=arch, **(settings or NETWORKS[arch]))
    model = build_model(config, 7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 1.5)
            for values in (module.running_mean, module.bias.data):
                values.normal_(std=0.3)
    return model, torch.randn(3, 1 if config.gray else 3, config.input_size, config.input_size)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("arch", NETWORKS)
def test_folding_keeps_the_logits(arch):
    model, images = trained(arch)
    with torch.no_grad():
        before = model(images)
        many = norms(model)
        model = for_prediction(model.train())
        after = model(images)
    assert not model.training
    assert norms(model) < many
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)
    assert before.abs().max() > 0.01


def test_a_norm_before_a_convolution_stays():
    """Its shift does not reach the padding, so folding it forward would change the border."""
    model, _ = trained("ir50_vit")
    kept = for_prediction(model).image_net.layers[0][0].norm1
    assert isinstance(kept, nn.BatchNorm2d)


def test_a_norm_that_is_an_activation_too_stays():
    """timm's own norms, as in DenseNet, end in a ReLU, which folding would lose."""
    model, images = trained("timm", backbone="densenet121", img_size=48)
    nn.init.constant_(model.net.features.norm0.bias, -2.0)
    with torch.no_grad():
        before = model(images)
        torch.testing.assert_close(for_prediction(model)(images), before, atol=2e-5, rtol=1e-4)
