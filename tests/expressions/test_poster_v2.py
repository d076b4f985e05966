"""POSTER V2 against the numbers of its published implementation, and what that one does wrong."""

import copy
import importlib.util
import json
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from affect.expressions.config import ImageModelConfig
from affect.expressions.models import build_model
from affect.expressions.models.poster_v2 import PosterV2
from affect.expressions.models.published import poster_v2_name, rename
from affect.expressions.models.transformer import Attention
from benchmarks.counting import count_macs, count_parameters

LANDMARK_HEAD_PARAMETERS = 512 * 49 + 2 * 512 + 512 * 136 + 2 * 136
"""The published network runs the head of its face net, too, and throws the landmarks away; here it does not exist."""
LANDMARK_HEAD_MACS = 512 * 49 + 512 * 136 + 4 * (512 + 136)


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, np.ndarray]:
    with np.load(shared / "goldens/poster_v2/golden_7cls.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def filled(shared) -> PosterV2:
    """The network with the weights of the reference numbers."""
    folder = shared / "goldens/poster_v2"
    return _filled(ImageModelConfig(), _reference_state(_load(folder / "fill.py"), folder / "state_dict_7cls.json"))


@pytest.fixture
def small() -> PosterV2:
    torch.manual_seed(0)
    return build_model(ImageModelConfig(width=0.1, depth=1, drop_path=0), 7)


def _load(path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_of_the_goldens", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reference_state(fill: ModuleType, table) -> dict[str, torch.Tensor]:
    rows = json.loads(table.read_text())
    state = {key: fill.fill_value(key, tuple(row["shape"]), set(rows)) for key, row in rows.items()}
    return {
        key: torch.from_numpy(np.asarray(value)) if value is not None else torch.zeros(rows[key]["shape"])
        for key, value in state.items()
    }


def _filled(config: ImageModelConfig, state: dict[str, torch.Tensor]) -> PosterV2:
    classes = len(state["VIT.head.linear.bias"])
    model = build_model(config, classes)
    model.load_state_dict(rename(state, poster_v2_name), strict=True)
    return model.eval()


def _logits(model: PosterV2, golden: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(golden["input"])).numpy()


def _error(model: PosterV2, golden: dict[str, np.ndarray]) -> float:
    return float(np.abs(_logits(model, golden) - golden["logits"]).max())


def test_logits_and_fused_maps_are_the_published_networks(filled, golden):
    assert _error(filled, golden) < 1e-4
    with torch.no_grad():
        maps = filled.fused_maps(torch.from_numpy(golden["input"]))
    for number, found in enumerate(maps, start=1):
        expected = golden[f"fused{number}"]
        assert np.abs(found.numpy() - expected).max() < 5e-4 * np.abs(expected).max()


def test_features_are_the_gated_class_token(filled, golden):
    with torch.no_grad():
        found = filled.features(torch.from_numpy(golden["input"])).numpy()
    np.testing.assert_allclose(found, golden["se"], atol=1e-4)
    assert found.shape[1] == filled.feature_dim == 768


def test_memory_layout_does_not_change_the_logits(filled, golden):
    assert filled.narrow.weight.is_contiguous(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(filled).to(memory_format=torch.contiguous_format)
    assert np.abs(_logits(contiguous, golden) - golden["logits"]).max() < 1e-4


@pytest.mark.parametrize("mode", ["bilinear", "area", "nearest-exact"])
def test_another_way_to_resize_would_be_noticed(filled, golden, monkeypatch, mode):
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda images, size: resize(images, size=size, mode=mode))
    assert _error(filled, golden) > 0.1


def test_transposed_offsets_would_be_noticed(filled, golden):
    changed = copy.deepcopy(filled)
    for fusion in changed.fusions:
        fusion.attn.offsets = fusion.attn.offsets.T
    assert _error(changed, golden) > 0.05


def test_another_number_of_heads_would_be_noticed(filled, golden):
    changed = copy.deepcopy(filled)
    for block in changed.blocks:
        block.attn.heads = 12
    assert _error(changed, golden) > 0.1


def test_gradients_are_the_published_networks(filled, golden, shared):
    expected = json.loads((shared / "goldens/poster_v2/grads_7cls.json").read_text())
    model = copy.deepcopy(filled)
    loss = F.cross_entropy(model(torch.from_numpy(golden["input"])), torch.tensor(expected["targets"]))
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    parameters = dict(model.named_parameters())
    compared = set()
    for key, numbers in expected["grad_l2_and_sum"].items():
        name = poster_v2_name(key)
        names = (
            []
            if name is None
            else [name.replace(".qkv.", f".{part}.") for part in ("q", "kv")][: 1 + (".qkv." in name)]
        )
        if numbers is None:
            assert all(parameters[name].grad is None for name in names), key
            continue
        gradient = torch.cat([parameters[name].grad.flatten() for name in names]).double()
        length, total = numbers
        assert gradient.norm().item() == pytest.approx(length, rel=1e-3), key
        assert gradient.sum().item() == pytest.approx(total, abs=1e-3 * length * len(gradient) ** 0.5), key
        compared.update(names)
    assert compared == {name for name, parameter in parameters.items() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("classes", "total", "trainable", "executed", "macs"),
    [
        (7, 58_316_594, 57_309_346, 43_849_957, 8_482_266_176),
        (8, 58_317_363, 57_310_115, 43_849_957 + 769, 8_482_266_944),
    ],
)
def test_counts_are_the_published_ones_less_what_is_never_used(shared, classes, total, trainable, executed, macs):
    model = build_model(ImageModelConfig(), classes)
    counted = count_parameters(model)
    assert counted.total + LANDMARK_HEAD_PARAMETERS == executed
    rows = json.loads((shared / f"goldens/poster_v2/state_dict_{classes}cls.json").read_text())
    buffers = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index")
    sizes = {key: int(np.prod(row["shape"])) for key, row in rows.items() if not key.endswith(buffers)}
    unused = {key: size for key, size in sizes.items() if poster_v2_name(key) is None}
    learning = {key: size for key, size in unused.items() if not key.startswith("face_landback.")}
    assert sum(sizes.values()) == total == counted.total + sum(unused.values())
    assert trainable == counted.trainable + sum(learning.values())
    assert count_macs(model, torch.zeros(1, 3, 224, 224), "with_norms") + LANDMARK_HEAD_MACS == macs


def test_eight_classes_load_with_the_same_names(shared):
    folder = shared / "goldens/poster_v2"
    state = _reference_state(_load(folder / "fill.py"), folder / "state_dict_8cls.json")
    model = _filled(ImageModelConfig(), state)
    assert torch.equal(model.head.weight, state["VIT.head.linear.weight"])
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 8)


def test_frozen_face_net_stays_as_it_is_through_training(small):
    before = {name: value.clone() for name, value in small.face_net.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in small.parameters() if p.requires_grad), lr=0.1)
    small.train()
    images = torch.randn(4, 3, 112, 112)
    F.cross_entropy(small(images), torch.arange(4)).backward()
    optimizer.step()
    assert not any(module.training for module in small.face_net.modules())
    assert all(torch.equal(value, before[name]) for name, value in small.face_net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in small.face_net.parameters())
    moved = small.image_net.stem[1].running_mean
    assert moved.abs().max() > 0, "the image net's statistics do move, so the comparison above means something"


def test_pictures_of_any_size_are_read(small):
    small.eval()
    with torch.no_grad():
        assert {small(torch.zeros(1, 3, size, size)).shape for size in (48, 112, 225)} == {(1, 7)}


def test_recomputing_activations_changes_neither_gradients_nor_statistics(small):
    recomputing = build_model(ImageModelConfig(width=0.1, depth=1, drop_path=0, grad_checkpointing=True), 7)
    recomputing.load_state_dict(small.state_dict())
    images = torch.randn(4, 3, 112, 112)
    for model in (small, recomputing):
        F.cross_entropy(model.train()(images), torch.arange(4)).backward()
    gradients = dict(recomputing.named_parameters())
    for name, parameter in small.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name].grad, parameter.grad)
    state = recomputing.state_dict()
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())


def test_dropout_of_attention_acts_in_training_only():
    torch.manual_seed(0)
    attention = Attention(16, heads=2, qkv_bias=True, attn_drop=0.5, window=7)
    queries, tokens = torch.randn(2, 1, 49, 16)
    assert not torch.equal(attention(queries, tokens), attention(queries, tokens))
    attention.eval()
    assert torch.equal(attention(queries, tokens), attention(queries, tokens))


def test_windows_drop_paths_at_rates_that_rise_evenly():
    model = build_model(ImageModelConfig(width=0.1), 7)
    assert [fusion.drop_path.drop_prob for fusion in model.fusions] == [0, 0.125, 0.25]
    assert all(block.drop_path.drop_prob == 0 for block in model.blocks)


def test_cam_layer_gives_a_map_with_a_gradient(small):
    maps = []
    small.cam_layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(output))
    small.eval()
    logits = small(torch.randn(2, 3, 112, 112))
    assert maps[0].shape[2:] == (7, 7)
    assert torch.autograd.grad(logits[:, 0].sum(), maps[0])[0].abs().max() > 0
