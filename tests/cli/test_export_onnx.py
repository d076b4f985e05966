"""Networks as ONNX files: the same logits for any batch, and all that a program needs to use them."""

import json

import numpy as np
import pytest
import torch

from affect.cli import export_onnx
from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.models import build_model, load_model
from affect.expressions.network_file import ModelCard, save_model
from affect.expressions.onnx_file import to_onnx

SETTINGS = {
    "compact": {"width": 0.25},
    "timm": {"backbone": "resnet18", "img_size": 32},
    "ir50_vit": {"width": 0.125, "img_size": 32, "depth": 2, "block": "cat_after_mlp", "qk_norm": True},
    "poster_v2": {"width": 0.125, "img_size": 64},
}
CLASSES = ("angry", "happy", "neutral")


def save_network(path, arch):
    torch.manual_seed(0)
    config = ImageModelConfig(arch=arch, **SETTINGS[arch])
    weights = build_model(config, len(CLASSES)).state_dict()
    # away from initial zeros and ones, which hide mistakes
    weights = {k: v + 0.1 * (torch.rand_like(v) - 0.5) if v.is_floating_point() else v for k, v in weights.items()}
    save_model(path, weights, ModelCard(config, CLASSES, input_spec(config, None, None), data="toys", epoch=3))
    return path


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    return pytest.importorskip("onnx", reason="the extra onnx is not installed")


@pytest.fixture
def onnxruntime(onnx):
    return pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.mark.parametrize("arch", SETTINGS)
def test_logits_are_those_of_torch_for_any_batch(tmp_path, onnxruntime, capsys, arch):
    checkpoint, out = save_network(tmp_path / "best.safetensors", arch), tmp_path / "net.onnx"
    export_onnx.main(["--ckpt", str(checkpoint), "--out", str(out), "--check"])
    assert "3 classes, logits within" in capsys.readouterr().out
    model, card = load_model(checkpoint)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        images = torch.randn(count, card.input.channels, card.input.size, card.input.size)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, model(images).numpy(), atol=1e-4)


def test_the_file_tells_its_classes_and_what_it_sees(tmp_path, onnx):
    checkpoint, out = save_network(tmp_path / "best.safetensors", "compact"), tmp_path / "net.onnx"
    export_onnx.main(["--ckpt", str(checkpoint), "--out", str(out)])
    told = json.loads((tmp_path / "net.json").read_text())
    expected = {"classes": list(CLASSES), "size": 48, "channels": 1, "mean": [0.5077], "std": [0.255], "data": "toys"}
    assert expected.items() <= told.items()
    assert told["output"] == "one distribution (softmax)"
    proto = onnx.load(out)
    inside = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(inside["classes"]) == list(CLASSES)
    assert (inside["size"], inside["mean"], inside["arch"]) == ("48", "[0.5077]", "compact")
    (images,) = proto.graph.input
    sizes = [dim.dim_value or dim.dim_param for dim in images.type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, 48, 48]


def test_an_older_opset_is_kept_to(tmp_path, onnx):
    model, card = load_model(save_network(tmp_path / "best.safetensors", "compact"))
    content = to_onnx(model, card, opset=18)
    (version,) = [entry.version for entry in onnx.load_from_string(content).opset_import if not entry.domain]
    assert version == 18


def test_other_logits_are_refused_and_nothing_is_written(tmp_path, onnxruntime, monkeypatch):
    checkpoint, out = save_network(tmp_path / "best.safetensors", "compact"), tmp_path / "net.onnx"

    class Wrong(onnxruntime.InferenceSession):
        def run(self, names, inputs):
            return [array + 1e-3 for array in super().run(names, inputs)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(ValueError, match=r"logits 1\.0e-03 away from torch's for 1 images"):
        export_onnx.main(["--ckpt", str(checkpoint), "--out", str(out), "--check"])
    assert not out.exists()


def test_a_missing_package_is_one_sentence_that_names_the_extra(tmp_path, monkeypatch):
    checkpoint = save_network(tmp_path / "best.safetensors", "compact")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx is not installed; install it with: pip install 'affect\[onnx\]'"):
        export_onnx.main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "net.onnx")])


def test_a_checkpoint_that_is_none_is_told_before_anything_else(tmp_path):
    with pytest.raises(ValueError, match="found no file"):
        export_onnx.main(["--ckpt", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "net.onnx")])


def test_the_network_is_not_written_where_its_description_goes(tmp_path):
    checkpoint = save_network(tmp_path / "best.safetensors", "compact")
    with pytest.raises(ValueError, match=r"net\.json: expected the name of an ONNX file"):
        export_onnx.main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "net.json")])
