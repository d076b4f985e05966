"""Grad-CAM on networks whose answer is known, and what it leaves behind."""

import numpy as np
import pytest
import torch
from torch import nn

from affect.expressions.config import ImageModelConfig
from affect.expressions.explain import draw_heat, grad_cam
from affect.expressions.models import ExpressionModel, build_model


class CornerWatcher(ExpressionModel):
    """Class 0 is how bright the upper left quarter is, class 1 the lower right one; a frozen layer comes first."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(1, 1, 4, stride=4, bias=False).requires_grad_(False)
        self.look.weight.fill_(1.0)
        self.after = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(1).eval()  # a part that is not in the mode of the rest
        self.scale = nn.Parameter(torch.ones(1))

    @property
    def cam_layer(self):
        return self.look

    def features(self, images):
        return self.norm(self.after(self.look(images)))

    def classify(self, features):
        return self.scale * torch.stack([features[:, 0, :4, :4].mean((1, 2)), features[:, 0, 4:, 4:].mean((1, 2))], 1)


def test_the_heat_lies_where_the_network_looks():
    images = torch.ones(2, 1, 32, 32)
    # both quarters are equally bright, so a plain map would show both; the gradient weighs whole channels
    images[:, :, 16:, :] = images[:, :, :, 16:] = 0
    heat = grad_cam(CornerWatcher(), images, torch.tensor([0, 0]))
    assert heat.shape == (2, 32, 32) and heat.dtype == np.float32 and heat.max() == 1
    assert heat[:, :16, :16].sum() > 0.9 * heat.sum()


class ChannelWatcher(CornerWatcher):
    """Two channels see the upper left and the lower right; each class reads one of them."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(1, 2, 4, stride=4, bias=False)
        self.mask = torch.zeros(2, 8, 8)
        self.mask[0, :4, :4] = self.mask[1, 4:, 4:] = 1
        self.places = Masked(self.look, self.mask)

    @property
    def cam_layer(self):
        return self.places

    def features(self, images):
        return self.places(images)

    def classify(self, features):
        return features.mean((2, 3))


class Masked(nn.Module):
    def __init__(self, layer, mask):
        super().__init__()
        nn.init.ones_(layer.weight)
        self.layer, self.mask = layer, mask

    def forward(self, x):
        return self.layer(x) * self.mask


@pytest.mark.parametrize(("target", "place"), [(0, slice(0, 16)), (1, slice(16, 32))])
def test_each_class_has_its_own_map(target, place):
    heat = grad_cam(ChannelWatcher(), torch.ones(1, 1, 32, 32), torch.tensor([target]))[0]
    assert heat[place, place].sum() > 0.85 * heat.sum()


def test_what_speaks_against_a_class_only_gives_an_empty_map():
    model = ChannelWatcher()
    nn.init.constant_(model.look.weight, -1.0)
    assert grad_cam(model, torch.ones(1, 1, 32, 32), torch.tensor([0])).max() == 0


def test_hooks_gradients_and_modes_are_as_before():
    model = CornerWatcher().train()
    model.norm.eval()
    statistics = model.norm.running_mean.clone()
    model.scale.grad = torch.tensor([3.0])
    grad_cam(model, torch.ones(1, 1, 32, 32), torch.tensor([0]))
    assert not model.look._forward_hooks and model.scale.grad.item() == 3.0 and model.look.weight.grad is None
    assert [model.training, model.look.training, model.norm.training] == [True, True, False]
    assert torch.equal(model.norm.running_mean, statistics)
    with torch.no_grad():
        grad_cam(model, torch.ones(1, 1, 32, 32), torch.tensor([0]))
        assert not torch.is_grad_enabled()


def test_a_layer_without_places_is_refused_and_its_hook_is_gone():
    model = CornerWatcher()
    model.look = nn.Flatten()
    with pytest.raises(ValueError, match=r"needs a layer with places.*\[1, 1024\]"):
        grad_cam(model, torch.ones(1, 1, 32, 32), torch.tensor([0]))
    assert not model.look._forward_hooks and model.training


@pytest.mark.parametrize(
    "config",
    [
        {"arch": "compact"},
        {"arch": "timm", "backbone": "resnet18", "img_size": 64},
        {"arch": "timm", "backbone": "vit_tiny_patch16_224", "img_size": 64},
        {"arch": "timm", "backbone": "swin_tiny_patch4_window7_224", "img_size": 64},
        {"arch": "ir50_vit", "width": 0.1, "img_size": 64, "depth": 2, "grad_checkpointing": True},
        {"arch": "poster_v2", "width": 0.1, "img_size": 64},
    ],
    ids=lambda config: f"{config['arch']}-{config.get('backbone', '')}",
)
def test_every_network_can_be_explained(config):
    model = build_model(ImageModelConfig.model_validate(config), 7).eval()
    size, channels = config.get("img_size", 48), 1 if config["arch"] == "compact" else 3
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    heat = grad_cam(model, images, torch.tensor([0, 3]))
    assert heat.shape == (2, size, size) and np.isfinite(heat).all() and heat.min() >= 0


def test_a_heated_face_stands_beside_the_plain_one():
    face = np.full((50, 40, 3), 100, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 1
    picture = draw_heat(face, heat)
    assert picture.shape == (50, 80, 3) and (picture[:, :40] == face).all()
    hot, cold = picture[5, 45].astype(int), picture[45, 75].astype(int)
    assert hot[0] > hot[2] and cold[2] > cold[0]  # red where it looks, blue elsewhere
