"""timm's networks behind the interface of the image track."""

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

from affect.core.config import ConfigError
from affect.expressions.config import ImageModelConfig
from affect.expressions.models import build_model

FAMILIES = {
    "resnet10t": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 56,
    "mobilenetv3_small_050": 64,
    "mixer_s32_224": 224,
}
"""A network of each kind -> pixels a side."""


def _build(name: str, size: int = 64, **settings):
    torch.manual_seed(0)
    return build_model(ImageModelConfig(arch="timm", backbone=name, img_size=size, **settings), 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_classifies_and_shows_where(name):
    size, seen = FAMILIES[name], []
    model = _build(name, size).eval()
    model.cam_layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    images = torch.randn(2, 3, size, size)
    features = model.features(images)
    assert features.shape == (2, model.feature_dim)
    logits = model.classify(features)
    assert logits.shape == (2, 5)
    batch, channels, height, width = model.as_map(seen[0]).shape
    assert batch == 2 and height == width > 1 and channels > width
    assert torch.autograd.grad(logits[:, 0].sum(), seen[0])[0].abs().max() > 0


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_features_are_those_of_the_plain_network(name):
    size = FAMILIES[name]
    model = _build(name, size).eval()
    options = {} if name == "resnet10t" else {"img_size": size}
    plain = timm.create_model(name, num_classes=0, **options).eval()
    plain.load_state_dict(model.net.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), plain(images), rtol=1e-4, atol=1e-4)


def test_patches_keep_their_places_in_the_map():
    model, maps = _build("vit_tiny_patch16_224").eval(), []
    model.cam_layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(model.as_map(output.detach())))
    images = torch.zeros(1, 3, 64, 64)
    model.net.pos_embed.data.zero_()
    for block in model.net.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)  # no patch hears of another one
    model(images)
    images[:, :, 16:32, 48:] = 5.0
    model(images)
    changed = (maps[0] - maps[1]).abs().sum(dim=1)[0] > 1e-3
    assert changed.nonzero().tolist() == [[1, 3]]


def test_a_copy_of_the_model_shows_its_own_map():
    model, maps = _build("vit_tiny_patch16_224"), []
    other = copy.deepcopy(model).eval()
    other.cam_layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(output))
    model(torch.zeros(2, 3, 64, 64))
    assert not maps
    other(torch.zeros(2, 3, 64, 64))
    assert len(maps) == 1


def test_state_holds_no_weight_twice_and_loads_into_the_same_network():
    for name in ("resnet10t", "vit_tiny_patch16_224"):
        model, other = _build(name), _build(name)
        state = model.state_dict()
        assert len({value.data_ptr() for value in state.values() if value.numel() > 1}) == len(
            [value for value in state.values() if value.numel() > 1]
        )
        other.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_recomputing_activations_gives_the_same_gradients(name):
    plain, recomputing = _build(name), _build(name, grad_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for model in (plain, recomputing):
        F.cross_entropy(model.train()(images), torch.tensor([0, 1])).backward()
    gradients = dict(recomputing.named_parameters())
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[key].grad, parameter.grad)


def test_recomputing_is_for_training_only():
    model = _build("vit_tiny_patch16_224", grad_checkpointing=True)
    assert model.train().net.grad_checkpointing
    assert not model.eval().net.grad_checkpointing


def test_drops_reach_the_network():
    model = _build("vit_tiny_patch16_224", attn_drop=0.1, proj_drop=0.2, drop_path=0.3)
    block = model.net.blocks[-1]
    assert block.attn.attn_drop.p == 0.1
    assert block.attn.proj_drop.p == 0.2
    assert block.drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet18x"}, "model.backbone resnet18x: timm has no network of that name; near it are"),
        ({"name": "resnet10t", "proj_drop": 0.1}, "resnet10t does not take one of model.proj_drop"),
        ({"name": "vit_tiny_patch16_224", "size": 8}, "model.img_size"),
        ({"name": "mobilenetv4_conv_small", "width": 0.5}, "model.width: timm has nothing of the kind"),
        ({"name": "dla46_c", "grad_checkpointing": True}, "model.grad_checkpointing: timm's dla46_c has none"),
    ],
)
def test_what_does_not_work_is_one_sentence(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        _build(**settings)
    assert "\n" not in str(error.value)


def test_pretrained_weights_without_a_network_are_one_sentence(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("cannot reach the hub\nand more lines")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"pretrained weights could not be had .*model.weights") as error:
        _build("resnet10t", pretrained=True)
    assert "\n" not in str(error.value)
