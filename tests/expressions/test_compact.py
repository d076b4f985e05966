"""The compact network for small gray faces."""

import pytest
import torch

from affect.core.config import ConfigError
from affect.expressions.config import ImageModelConfig
from affect.expressions.models import build_model
from benchmarks.counting import count_macs, count_parameters


def _build(**settings):
    torch.manual_seed(0)
    return build_model(ImageModelConfig(arch="compact", **settings), 7)


def test_counts_are_those_of_the_known_checkpoint():
    model = _build()
    assert count_parameters(model).total == 319_927
    floats = [value for value in model.state_dict().values() if value.is_floating_point()]
    assert sum(4 * value.numel() for value in floats) == 1_286_876
    assert count_macs(model, torch.zeros(1, 1, 48, 48)) == pytest.approx(66.9e6, rel=1e-3)
    assert model.neck[0].weight.shape == (256, 512)


def test_features_are_what_the_last_layer_reads():
    model = _build().eval()
    images = torch.randn(3, 1, 48, 48)
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (3, 128) == (3, model.feature_dim)
        torch.testing.assert_close(model(images), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("size", [16, 48, 64, 97])
def test_any_size_from_sixteen_pixels_works(size):
    model = _build(img_size=size).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, size, size)).shape == (1, 7)


def test_a_smaller_picture_is_refused():
    with pytest.raises(ConfigError, match="at least 16"):
        _build(img_size=15)


def test_less_width_means_fewer_parameters():
    assert count_parameters(_build(width=0.5)).total < 0.3 * count_parameters(_build()).total


def test_dropout_acts_in_training_only():
    model, images = _build(), torch.randn(4, 1, 48, 48)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_cam_layer_gives_a_map_with_a_gradient():
    model, maps = _build().eval(), []
    model.cam_layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(output))
    logits = model(torch.randn(1, 1, 48, 48))
    assert maps[0].shape == (1, 128, 12, 12)
    assert torch.autograd.grad(logits[0, 0], maps[0])[0].abs().max() > 0


def test_no_weight_is_stored_twice():
    model = _build()
    storages = [value.data_ptr() for value in model.state_dict().values()]
    assert len(storages) == len(set(storages))


def test_settings_that_the_network_does_not_have_are_refused():
    with pytest.raises(
        ConfigError, match=r"model.drop_path, model.grad_checkpointing: compact has nothing of the kind"
    ):
        _build(drop_path=0.1, grad_checkpointing=True)
