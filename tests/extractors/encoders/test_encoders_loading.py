"""Loading: weights that do not fit are refused in one sentence, and the precision follows the device."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from affect.core.schema import Modality
from affect.features.store import FeatureSpec, FeatureStore
from extractors.encoders import build_encoder
from extractors.encoders.pretrained import WeightsError, numbers
from tiny_encoders import SENTENCES, encode, frames, save, sounds

ITEMS = {Modality.FRAME: [frames(3)], Modality.AUDIO: [sounds(3)], Modality.AU: [SENTENCES]}
PUBLISHED = {
    Modality.FRAME: ("CLIP_VIT_LARGE", "clip"),
    Modality.AUDIO: ("HUBERT_LARGE", "hubert"),
    Modality.AU: ("CLIP_VITB32", "open_clip"),
}
MODELS = [
    (Modality.FRAME, "hf", "clip"),
    (Modality.FRAME, "open_clip", "open_clip"),
    (Modality.AUDIO, "hf", "hubert"),
    (Modality.AUDIO, "hf", "wavlm"),
    (Modality.AU, "hf", "bert"),
    (Modality.AU, "open_clip", "open_clip"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {kind: save(kind, place) for kind in {kind for _, _, kind in MODELS}}


@pytest.mark.parametrize("modality", ITEMS)
def test_the_store_takes_features_and_provenance_as_they_are(tmp_path, folders, modality):
    name, kind = PUBLISHED[modality]
    encoder = build_encoder(modality, name, weights=str(folders[kind]))
    store, spec = FeatureStore(tmp_path, "demo"), FeatureSpec(modality, encoder.name, encoder.dim)
    (array,) = encode(encoder, ITEMS[modality])
    store.write(spec, "clip", array, encoder.provenance())
    assert np.array_equal(store.read(spec, "clip"), array)
    found = store.provenance(spec)
    assert {"family", "weights", "layer", "pooling", "preprocessing", "precision", "versions"} <= found.keys()
    assert found["weights"]


def test_features_of_a_folder_of_weights_have_a_folder_of_their_own(tmp_path, folders):
    encoder = build_encoder("frame", f"hf:{folders['clip']}")
    store, spec = FeatureStore(tmp_path, "demo"), FeatureSpec(Modality.FRAME, encoder.name, encoder.dim)
    path = store.write(spec, "clip", encode(encoder, ITEMS[Modality.FRAME])[0], encoder.provenance())
    assert path.parent.parent == tmp_path / "demo"
    assert store.read(spec, "clip").shape == (3, 20)


def test_precision_is_full_on_cpu_and_half_on_cuda_as_the_card_allows(monkeypatch):
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return len(asked) == 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert numbers("cpu") == torch.float32
    assert numbers("cuda") == torch.bfloat16
    assert numbers("cuda:1") == torch.float16
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert numbers("cuda", "float32") == torch.float32 and not torch.backends.cudnn.allow_tf32
    assert asked == [False, False]  # an emulated bfloat16 is slower than float32


def test_a_gpu_that_is_not_there_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WeightsError, match=r"device cuda:0 is asked for, but torch finds no GPU"):
        numbers("cuda:0")


@pytest.mark.parametrize("modality, family, kind", MODELS)
def test_half_precision_gives_nearly_the_same_as_float32(folders, modality, family, kind):
    (expected,) = encode(build_encoder(modality, f"{family}:{folders[kind]}"), ITEMS[modality])
    (found,) = encode(build_encoder(modality, f"{family}:{folders[kind]}", precision="float16"), ITEMS[modality])
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("modality, family, kind", MODELS)
def test_bfloat16_is_recorded_and_gives_float32_rows(folders, modality, family, kind):
    encoder = build_encoder(modality, f"{family}:{folders[kind]}", precision="bfloat16")
    (found,) = encode(encoder, ITEMS[modality])
    assert encoder.provenance()["precision"] == "bfloat16" and encoder.provenance()["device"] == "cpu"
    assert found.dtype == np.float32
    assert found.shape == (len(ITEMS[modality][0]), encoder.dim)
    assert np.isfinite(found).all()
    if modality == Modality.AU:
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_hash_tells_weights_apart(tmp_path, folders):
    model = transformers.CLIPModel.from_pretrained(folders["clip"])
    shutil.copytree(folders["clip"], tmp_path / "other")
    with torch.no_grad():
        model.visual_projection.weight.add_(0.1)
    model.save_pretrained(tmp_path / "other")
    hashes = [
        build_encoder(Modality.FRAME, "CLIP_VIT_LARGE", weights=str(folder)).provenance()["weights"]
        for folder in (folders["clip"], folders["clip"], tmp_path / "other")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("modality", PUBLISHED)
def test_weights_that_are_not_there_are_an_error_that_says_where_to_put_them(tmp_path, modality, monkeypatch):
    name, _ = PUBLISHED[modality]
    monkeypatch.setenv(f"AFFECT_{name}", str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match=f"AFFECT_{name} .* AFFECT_WEIGHTS") as caught:
        build_encoder(modality, name)
    assert str(tmp_path / "nothing") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "modality, name, kind, reason",
    [
        (Modality.FACE, "CLIP_VIT_LARGE", "hubert", "'hubert'; expected 'clip'"),
        (Modality.FACE, "", "hubert", "'hubert', which takes input_values; expected one that takes pictures"),
        (Modality.FACE, "", "bert", "'bert', which takes input_ids; expected one that takes pictures"),
        (Modality.AUDIO, "HUBERT_LARGE", "clip", "'clip'; expected 'hubert'"),
        (Modality.AUDIO, "", "clip", "'clip', which takes .*; expected one that takes sound waves"),
        (Modality.AU, "CLIP_VITB32", "clip", "has no open_clip_config.json"),
        (Modality.AU, "", "wavlm", "'wavlm', which takes input_values; expected one that takes text"),
        (Modality.FACE, "", "open_clip", "no usable weights at"),
    ],
)
def test_weights_of_another_kind_are_refused(folders, modality, name, kind, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        build_encoder(modality, name or f"hf:{folders[kind]}", weights=str(folders[kind]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("modality, family, kind", MODELS)
def test_a_checkpoint_with_holes_is_refused_and_never_filled_at_random(tmp_path, folders, modality, family, kind):
    copy = Path(shutil.copytree(folders[kind], tmp_path / kind))
    (file,) = copy.glob("*.safetensors")
    state = safetensors.torch.load_file(file)
    gone = next(key for key in sorted(state) if "ln_2" in key or "layer_norm" in key or "LayerNorm" in key)
    safetensors.torch.save_file({k: v for k, v in state.items() if k != gone}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=gone.split(".")[-2]) as caught:
        build_encoder(modality, f"{family}:{copy}")
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_weights_is_never_run(tmp_path):
    folder = save("clip", tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('run')")
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(WeightsError, match=r"\(only code of its own can load it, and such code is never run\)"):
        build_encoder("frame", f"hf:{folder}")
