"""Published weights under the names here: what is read, what is left out, and what is refused."""

import logging
import re
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from affect.core.config import ConfigError
from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.models import build_model
from affect.expressions.models.published import (
    face_net_name,
    ir50_name,
    iresnet_name,
    poster_v2_name,
    read_weights,
    rename,
)
from affect.expressions.network_file import ModelCard, save_model

WIDTH = 0.1


def _state(model) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(v) if v.is_floating_point() else v for name, v in model.state_dict().items()}


def _poster(**settings):
    return build_model(ImageModelConfig(width=WIDTH, depth=2, **settings), 7)


def _reference_names(shared) -> list[str]:
    lines = (shared / "goldens/poster_v2/keys_7cls.txt").read_text().splitlines()
    return [line.split("\t")[0] for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def poster_state(shared) -> dict[str, torch.Tensor]:
    """A POSTER V2 of few channels under the published names, with tensors that are never used."""
    torch.manual_seed(0)
    state = _state(_poster())
    published = {}
    for key in _reference_names(shared):
        name = poster_v2_name(key)
        if name is None:
            published[key] = torch.zeros(3)
        elif ".qkv." in name:
            published[key] = torch.cat([state[name.replace(".qkv.", f".{part}.")] for part in ("q", "kv")])
        else:
            published[key] = state[name]
    return published


def _same(model, state: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_poster_v2_loads_in_every_wrapping(tmp_path, poster_state, prefix, wrapper):
    weights = {prefix + key: value for key, value in poster_state.items()}
    path = tmp_path / "poster.pth"
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, path)
    assert _same(_poster(weights=str(path)), rename(poster_state, poster_v2_name))


def test_records_that_the_authors_script_pickles_are_passed_over(tmp_path, poster_state, monkeypatch):
    class RecorderMeter:
        def __init__(self):
            self.total_epoch = 2
            self.epoch_losses = np.zeros((2, 2), dtype=np.float32)
            self.best = np.float64(3.5)

    main = types.ModuleType("__main__")
    main.RecorderMeter = RecorderMeter
    RecorderMeter.__module__, RecorderMeter.__qualname__ = "__main__", "RecorderMeter"
    path = tmp_path / "poster.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "__main__", main)
        torch.save({"state_dict": poster_state, "recorder": RecorderMeter(), "best_acc": torch.tensor(9.0)}, path)
    assert _same(_poster(weights=str(path)), rename(poster_state, poster_v2_name))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("the file ran code",))

    path = tmp_path / "trap.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap()}, path)
    with pytest.raises(ConfigError, match="not read since it may run code"):
        read_weights(path)


def test_every_published_name_has_a_place_or_is_known_to_be_unused(shared):
    kinds = dict(
        line.split("\t")[::2]
        for line in (shared / "goldens/poster_v2/keys_7cls.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    unused = {key for key in kinds if poster_v2_name(key) is None}
    assert unused == {key for key, kind in kinds.items() if kind in "Uf" or key.endswith("relative_position_index")}
    names = [poster_v2_name(key) for key in kinds if key not in unused]
    parted = {name.replace(".qkv.", f".{part}.") for name in names for part in ("q", "kv")}
    assert parted == set(_poster().state_dict()) and len(names) == len(set(names))


@pytest.mark.parametrize("counted_through", [True, False])
def test_ir50_loads_with_units_counted_through_or_by_layers(tmp_path, poster_state, counted_through):
    part = {key.removeprefix("ir_back."): v for key, v in poster_state.items() if key.startswith("ir_back.")}
    first = (0, 0, 3, 7, 21)
    if counted_through:
        part = {
            re.sub(r"^body(\d)\.(\d+)", lambda m: f"body.{first[int(m[1])] + int(m[2])}", key): value
            for key, value in part.items()
        }
        part["body.21.res_layer.0.weight"] = torch.zeros(5)  # of the layer that POSTER V2 ends before
    else:
        part["body4.0.res_layer.0.weight"] = torch.zeros(5)
    torch.save(part, tmp_path / "ir50.pth")
    model = _poster(ir50_weights=str(tmp_path / "ir50.pth"))
    expected = rename({key: v for key, v in poster_state.items() if key.startswith("ir_back.")}, poster_v2_name)
    assert _same(model, expected)


def test_face_net_loads_from_the_published_archive_without_its_head(tmp_path, poster_state):
    part = {key.removeprefix("face_landback."): v for key, v in poster_state.items() if key.startswith("face_")}
    path = tmp_path / "mobilefacenet_model_best.pth.tar"
    torch.save({"state_dict": part, "epoch": 80}, path, _use_new_zipfile_serialization=False)
    model = _poster(face_weights=str(path))
    assert _same(model.face_net, rename(part, face_net_name))
    assert not any(parameter.requires_grad for parameter in model.face_net.parameters())


@pytest.mark.parametrize("stage", ["stage3", "stage4"])
def test_insightface_weights_fill_the_backbone_of_the_vit(tmp_path, stage):
    def config(stage: str, **settings) -> ImageModelConfig:
        return ImageModelConfig(arch="ir50_vit", width=WIDTH, depth=1, img_size=32, stage=stage, **settings)

    whole = _state(build_model(config("stage4"), 7).image_net)
    names = {"stem.0": "conv1", "stem.1": "bn1", "stem.2": "prelu", "shortcut": "downsample"}
    names |= {"norm1": "bn1", "norm2": "bn2", "norm3": "bn3", "act": "prelu"}
    published = {"fc.weight": torch.zeros(2, 2), "bn2.weight": torch.zeros(2), "features.bias": torch.zeros(2)}
    for name, value in whole.items():
        key = re.sub(r"layers\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name)
        for ours, theirs in names.items():
            key = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\1{theirs}.", key)
        published[key] = value
    assert "layer4.2.bn3.running_var" in published and "layer1.0.downsample.1.weight" in published
    torch.save(published, tmp_path / "backbone.pth")
    model = build_model(config(stage, ir50_weights=str(tmp_path / "backbone.pth")), 7)
    kept = model.image_net.state_dict()
    assert ("layers.3.2.conv1.weight" in kept) is (stage == "stage4")
    assert all(torch.equal(value, whole[name]) for name, value in kept.items())


def test_another_classifier_is_left_out_with_one_line(tmp_path, poster_state, caplog):
    eight = poster_state | {"VIT.head.linear.weight": torch.zeros(8, 80), "VIT.head.linear.bias": torch.zeros(8)}
    torch.save(eight, tmp_path / "eight.pth")
    with caplog.at_level(logging.INFO, logger="affect"):
        model = _poster(weights=str(tmp_path / "eight.pth"))
    lines = [record.getMessage() for record in caplog.records if "classifier" in record.getMessage()]
    assert len(lines) == 1 and "8 classes" in lines[0]
    assert model.head.weight.abs().max() > 0
    assert _same(model, {"cls_token": poster_state["VIT.cls_token"]})


def test_an_own_checkpoint_of_other_classes_is_a_start(tmp_path):
    config = ImageModelConfig(arch="compact", width=WIDTH)
    trained = build_model(config, 8)
    torch.nn.init.normal_(trained.stem[0][0].weight)
    path = tmp_path / "best.safetensors"
    save_model(path, trained.state_dict(), ModelCard(config, tuple("abcdefgh"), input_spec(config, None, None)))
    for given in (path, tmp_path):
        model = build_model(config.model_copy(update={"weights": str(given)}), 7)
        assert torch.equal(model.stem[0][0].weight, trained.stem[0][0].weight)
        assert model.head.weight.shape[0] == 7
    with pytest.raises(ConfigError, match=r"expected weights of poster_v2, as model.arch says, found compact"):
        _poster(weights=str(path))


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize(
    ("backbone", "head", "width", "first"),
    [("resnet10t", "fc", 512, "conv1.0.weight"), ("vit_tiny_patch16_224", "head", 192, "blocks.0.attn.qkv.weight")],
)
def test_timm_file_of_other_classes_is_a_start(tmp_path, save, backbone, head, width, first):
    config = ImageModelConfig(arch="timm", backbone=backbone, img_size=64)
    plain = build_model(config, 7).net.state_dict()
    plain |= {f"{head}.weight": torch.zeros(1000, width), f"{head}.bias": torch.zeros(1000)}
    plain[first] = torch.randn_like(plain[first])
    path = tmp_path / f"model.{'safetensors' if save is save_file else 'pth'}"
    save({name: weight.contiguous() for name, weight in plain.items()}, path)
    model = build_model(config.model_copy(update={"weights": str(path)}), 7)
    assert torch.equal(model.net.state_dict()[first], plain[first])


@pytest.mark.parametrize("key", ["weights", "ir50_weights", "face_weights"])
def test_a_missing_file_says_where_to_put_it(tmp_path, key):
    path = tmp_path / "models" / "file.pth"
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: no such file; put .* there, or set model\.{key}"):
        _poster(**{key: str(path)})


def test_a_file_cut_off_is_one_sentence(tmp_path, poster_state):
    path = tmp_path / "poster.pth"
    torch.save(poster_state, path)
    whole = path.read_bytes()
    for share in (0, 0.01, 0.4, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ConfigError) as error:
            _poster(weights=str(path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_optimizers_state_is_no_network(tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    torch.save(optimizer.state_dict(), tmp_path / "model_best.pth")
    with pytest.raises(ConfigError, match="found an optimizer's state; take the file that holds the network"):
        _poster(weights=str(tmp_path / "model_best.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("VIT.norm.weight"), "norm.weight is missing"),
        (lambda s: s.update({"VIT.extra": torch.zeros(1)}), "extra has no place in it"),
        (lambda s: s.update({"VIT.norm.weight": torch.zeros(5)}), r"norm.weight is \[5\], expected \[80\]"),
    ],
)
def test_weights_that_do_not_fit_name_the_first_that_does_not(tmp_path, poster_state, change, message):
    state = dict(poster_state)
    change(state)
    torch.save(state, tmp_path / "poster.pth")
    with pytest.raises(ConfigError, match=message):
        _poster(weights=str(tmp_path / "poster.pth"))


def test_ir50_of_the_other_form_is_refused(tmp_path, poster_state):
    part = {key.removeprefix("ir_back."): v for key, v in poster_state.items() if key.startswith("ir_back.")}
    torch.save(part, tmp_path / "ir50.pth")
    config = ImageModelConfig(arch="ir50_vit", width=WIDTH, depth=1, img_size=32)
    with pytest.raises(ConfigError, match="not the weights of insightface's iresnet50"):
        build_model(config.model_copy(update={"ir50_weights": str(tmp_path / "ir50.pth")}), 7)


def test_unknown_names_come_back_as_they_are():
    assert {f("surprise.weight") for f in (poster_v2_name, ir50_name, iresnet_name, face_net_name)} == {
        "surprise.weight"
    }
