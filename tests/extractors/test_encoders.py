"""Encoders: the embedded ones by their meaning, the pretrained ones against the model run by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)

from affect.schema import Modality
from affect.store import FeatureSpec, FeatureStore
from extractors.audio import load_audio, sound_clips
from extractors.encoders import EMBEDDED, PRETRAINED, Encoder, build_encoder
from extractors.encoders.loading import WeightsError

MEAN, STD = np.array([0.481, 0.458, 0.408]), np.array([0.269, 0.261, 0.276])
OPEN_CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SENTENCES = ["The inner brow is raised.", "The lip corners are pulled down.", "", "Nose wrinkler. " * 100]


def frames(count: int, height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def sounds(count: int = 8, seed: int = 0, samples: int = 32_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (count, samples)).astype(np.float32)


def tone(hertz: float, loudness: float = 0.3) -> np.ndarray:
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(32_000) / 16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 50},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=20,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size, image_mean=MEAN.tolist(), image_std=STD.tolist()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hubert_folder(tmp_path_factory) -> Path:
    """A model of the kind of HUBERT_LARGE: norms before the layers, input normalised."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=2,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 4),
        conv_stride=(8, 8, 5),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
    )
    model = HubertModel(config)
    with torch.no_grad():  # away from the initial zeros, which would make it blind to loudness
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(0)
    config = json.dumps({"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(config)
    model = open_clip.model.CLIP(**OPEN_CLIP_CONFIG)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def pretrained(clip_folder, hubert_folder, open_clip_folder) -> dict[Modality, Encoder]:
    folders = {Modality.FRAME: clip_folder, Modality.AUDIO: hubert_folder, Modality.AU: open_clip_folder}
    return {modality: build_encoder(modality, PRETRAINED[modality], weights=str(f)) for modality, f in folders.items()}


def batch(modality: Modality) -> list:
    """Items of different lengths, empty ones among them, and enough rows for several forward passes."""
    if modality == Modality.AUDIO:
        return [sounds(8), None, sounds(8, seed=1), np.tile(tone(200), (8, 1)), sounds(8, seed=2), sounds(8, seed=3)]
    if modality == Modality.AU:
        return [SENTENCES, [], ["Cheek raiser."], [f"Sentence {i}." for i in range(260)]]
    return [frames(5), frames(0), frames(1, 90, 40, seed=1), frames(3, 3, 3, seed=2), frames(66, 20, 20, seed=3)]


def embedded(modality: Modality) -> Encoder:
    return build_encoder(modality, EMBEDDED[modality].name)


@pytest.mark.parametrize("modality", [Modality.FRAME, Modality.AUDIO, Modality.AU])
@pytest.mark.parametrize("kind", ["embedded", "pretrained"])
def test_a_batch_gives_what_its_items_give_one_by_one(kind, modality, pretrained):
    encoder = embedded(modality) if kind == "embedded" else pretrained[modality]
    items = batch(modality)
    together = encoder(items)
    assert len(together) == len(items)
    for item, array in zip(items, together, strict=True):
        assert array.dtype == np.float32
        assert array.shape == (0 if item is None else len(item), encoder.dim)
        assert np.isfinite(array).all()
        np.testing.assert_allclose(encoder([item])[0], array, atol=1e-5)
    assert np.abs(together[0]).max() > 0
    assert encoder([]) == []


@pytest.mark.parametrize("modality", [Modality.FRAME, Modality.AUDIO, Modality.AU])
@pytest.mark.parametrize("kind", ["embedded", "pretrained"])
def test_the_store_takes_features_and_provenance_as_they_are(tmp_path, kind, modality, pretrained):
    encoder = embedded(modality) if kind == "embedded" else pretrained[modality]
    store, spec = FeatureStore(tmp_path, "demo"), FeatureSpec(modality, encoder.name, encoder.dim)
    for i, array in enumerate(encoder(batch(modality))):
        store.write(spec, f"clip{i}", array, encoder.provenance())
        assert np.array_equal(store.read(spec, f"clip{i}"), array)
    found = store.provenance(spec)
    assert {"family", "weights", "layer", "pooling", "preprocessing", "versions"} <= found.keys()
    assert bool(found["weights"]) == (kind == "pretrained")


def test_the_embedded_encoders_need_no_torch():
    code = (
        "import sys; from extractors.encoders import EMBEDDED, build_encoder; "
        "[build_encoder(m, e.name).provenance() for m, e in EMBEDDED.items()]; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_pictures_do_not_change_with_brightness_and_contrast_but_with_what_they_show():
    encode = embedded(Modality.FACE)
    picture = frames(1, 60, 60).astype(float).repeat(4, axis=1).repeat(4, axis=2)
    dim = (picture * 0.5 + 40).astype(np.uint8)
    bright, faint, other = encode([picture.astype(np.uint8), dim, picture[:, :, ::-1].astype(np.uint8)])
    np.testing.assert_allclose(bright, faint, atol=0.05)
    assert np.corrcoef(bright[0], other[0])[0, 1] < 0.5


def test_a_stripe_pattern_lights_up_its_own_frequency():
    columns = 127 + 100 * np.cos(np.pi * 3 * (np.arange(48) + 0.5) / 48)
    stripes = np.broadcast_to(columns[None, None, :, None], (1, 48, 48, 3)).astype(np.uint8)
    row = np.abs(embedded(Modality.FRAME)([stripes])[0][0])
    # order by frequency: (0,1) (1,0) (1,1) (0,2) (2,0) (1,2) (2,1) (2,2) (0,3)
    assert row.argmax() == 8
    assert row[8] > 10 * np.delete(row, 8).max()


def test_a_flat_picture_is_finite_and_small():
    row = embedded(Modality.FACE)([np.full((1, 30, 30, 3), 77, np.uint8)])[0]
    assert np.abs(row).max() < 1e-6


def test_silence_and_noise_floor_are_finite():
    encode = embedded(Modality.AUDIO)
    silence, hiss = encode([np.zeros((8, 32_000), np.float32), sounds() * 1e-5])
    assert np.isfinite(silence).all()
    assert np.isfinite(hiss).all()
    assert np.abs(silence).max() < 10


def test_pitch_is_in_octaves_and_its_rise_has_a_sign():
    encode = embedded(Modality.AUDIO)
    glide = (0.3 * np.sin(2 * np.pi * np.cumsum(np.linspace(150, 300, 32_000)) / 16_000)).astype(np.float32)
    low, high, rising, falling = encode([np.stack([tone(120), tone(240), glide, glide[::-1]])])[0]
    assert high[0] - low[0] == pytest.approx(1, abs=0.02)
    slope = 5
    assert rising[slope] == pytest.approx(0.5, abs=0.1)  # an octave in two seconds
    assert falling[slope] == pytest.approx(-0.5, abs=0.1)
    assert abs(low[slope]) < 0.01


def test_noise_has_no_pitch_and_a_tone_has_nothing_else():
    voiced_share = 18
    noise, pure = embedded(Modality.AUDIO)([np.stack([sounds(1)[0], tone(200)])])[0]
    assert noise[voiced_share] < 0.1
    assert pure[voiced_share] > 0.9


def test_equal_clips_have_equal_rows_whatever_stands_beside_them():
    encode = embedded(Modality.AUDIO)
    a, b = tone(150), tone(300)
    rows = encode([np.stack([a, b, a, a])])[0]
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[0], rows[3])
    np.testing.assert_allclose(rows[1], encode([b[None]])[0][0], rtol=1e-5, atol=1e-5)


def test_angry_speech_is_louder_and_higher_than_calm_speech(shared):
    folder = shared / "data/speech/ravdess"

    def mean_row(emotion: str) -> np.ndarray:
        items = [sound_clips(load_audio(path)) for path in sorted(folder.glob(f"03-01-{emotion}-*.wav"))]
        return np.concatenate(embedded(Modality.AUDIO)(items)).mean(axis=0)

    calm, angry = mean_row("02"), mean_row("05")
    pitch, loudness = 0, 9
    assert angry[pitch] > calm[pitch] + 0.2
    assert angry[loudness] > calm[loudness] + 0.3


def test_text_rows_have_length_one_and_tell_texts_apart():
    encode = embedded(Modality.AU)
    rows = encode([["brow raised", "raised brow", "Brow RAISED!", "", "...", "jaw drops wide"]])[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    similar = rows @ rows.T
    assert similar[0, 2] == pytest.approx(1)
    assert 0.2 < similar[0, 1] < 0.9  # the same words in another order
    assert abs(similar[0, 5]) < 0.2
    assert similar[3, 4] == pytest.approx(1)


def test_text_hashes_are_the_same_in_every_process():
    row = embedded(Modality.AU)([["raised"]])[0][0]
    # CRC-32 of the word and of its pairs with the marks at both ends
    assert {i: float(np.sign(row[i])) for i in np.flatnonzero(row).tolist()} == {211: 1.0, 412: -1.0, 439: -1.0}


def test_picture_features_are_those_of_the_model_run_by_hand(clip_folder, pretrained):
    picture = frames(1, 64, 96)[0]
    small = Image.fromarray(picture).resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    pixels = ((np.asarray(small) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.inference_mode():
        pooled = model.vision_model(pixel_values=torch.tensor(pixels, dtype=torch.float32)).pooler_output
        expected = model.visual_projection(pooled).numpy()
    np.testing.assert_allclose(pretrained[Modality.FRAME]([picture[None]])[0], expected, atol=1e-4)


def hubert_by_hand(folder: Path, clips: np.ndarray) -> np.ndarray:
    """Mean of the last four hidden states as transformers 4 listed them: the last one after the norm."""
    model = HubertModel.from_pretrained(folder).eval()
    joint = (clips - clips.mean()) / np.sqrt(clips.var() + 1e-7)
    states = []
    with torch.inference_mode():
        hidden = model.feature_projection(model.feature_extractor(torch.tensor(joint)).transpose(1, 2))
        hidden = hidden + model.encoder.pos_conv_embed(hidden)
        for layer in model.encoder.layers:
            states.append(hidden)
            output = layer(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
        states.append(model.encoder.layer_norm(hidden))
        return torch.stack(states[-4:]).mean(0).mean(1).numpy()


def test_sound_features_are_those_of_the_model_run_by_hand(hubert_folder, pretrained):
    clips = sounds() * np.linspace(0.1, 3, 8, dtype=np.float32)[:, None]
    expected = hubert_by_hand(hubert_folder, clips)
    np.testing.assert_allclose(pretrained[Modality.AUDIO]([clips])[0], expected, atol=1e-4)


def test_sound_clips_are_normalised_together(pretrained):
    encode = pretrained[Modality.AUDIO]
    clips = sounds()
    louder_rest = np.concatenate([clips[:1], 5 * clips[1:]])
    np.testing.assert_allclose(encode([clips])[0], encode([7 * clips])[0], atol=1e-4)
    assert np.abs(encode([clips])[0][0] - encode([louder_rest])[0][0]).max() > 1e-3


def test_sound_weights_of_old_checkpoints_are_read(tmp_path, hubert_folder, pretrained):
    """Published HuBERT weights are .bin files that name the weight norm's parts weight_g and weight_v."""
    state = HubertModel.from_pretrained(hubert_folder).state_dict()
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in state.items()
    }
    assert any(key.endswith("weight_g") for key in old)
    for file in hubert_folder.glob("*.json"):
        shutil.copy(file, tmp_path)
    torch.save(old, tmp_path / "pytorch_model.bin")
    encoder = build_encoder(Modality.AUDIO, "HUBERT_LARGE", weights=str(tmp_path))
    assert np.array_equal(encoder([sounds()])[0], pretrained[Modality.AUDIO]([sounds()])[0])


def test_text_features_are_those_of_the_model_normalised(open_clip_folder, pretrained):
    model = open_clip.create_model(f"local-dir:{open_clip_folder}").eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(SENTENCES)
    assert tokens.shape == (4, 77)
    with torch.inference_mode():
        expected = model.encode_text(tokens)
        expected = (expected / expected.norm(dim=1, keepdim=True)).numpy()
    rows = pretrained[Modality.AU]([SENTENCES])[0]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "weights, model_name, options",
    [
        ("ViT-B-32/openai", "ViT-B-32", {"pretrained": "openai", "force_quick_gelu": True}),
        ("ViT-B-32/laion2b_s34b_b79k", "ViT-B-32", {"pretrained": "laion2b_s34b_b79k", "force_quick_gelu": False}),
        ("someone/model", "hf-hub:someone/model", {}),
    ],
)
def test_text_weights_are_asked_for_with_the_activation_they_were_trained_with(
    monkeypatch, weights, model_name, options
):
    asked = []

    def create_model(name, **given):
        asked.append((name, given))
        raise RuntimeError("not here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(WeightsError, match=f"no usable weights at '{weights}' .not here."):
        build_encoder(Modality.AU, "CLIP_VITB32", weights=weights)
    assert asked == [(model_name, {"device": "cpu", "require_pretrained": True, **options})]


def test_the_hash_tells_weights_apart(tmp_path, clip_folder):
    model = CLIPModel.from_pretrained(clip_folder)
    shutil.copytree(clip_folder, tmp_path / "other")
    with torch.no_grad():
        model.visual_projection.weight.add_(0.1)
    model.save_pretrained(tmp_path / "other")
    hashes = [
        build_encoder(Modality.FRAME, "CLIP_VIT_LARGE", weights=str(folder)).provenance()["weights"]
        for folder in (clip_folder, clip_folder, tmp_path / "other")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_weights_are_found_by_environment_variable_or_as_the_name_itself(clip_folder, monkeypatch):
    monkeypatch.setenv("AFFECT_CLIP_VIT_LARGE", str(clip_folder))
    assert build_encoder("face", "CLIP_VIT_LARGE").dim == 20
    assert build_encoder("face", str(clip_folder)).name == str(clip_folder)


@pytest.mark.parametrize("modality", [Modality.FACE, Modality.AUDIO, Modality.AU])
def test_weights_that_are_not_there_are_an_error_that_says_where_to_put_them(tmp_path, modality, monkeypatch):
    name = PRETRAINED[modality]
    monkeypatch.setenv(f"AFFECT_{name}", str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match=f"AFFECT_{name} .* AFFECT_WEIGHTS") as caught:
        build_encoder(modality, name)
    assert str(tmp_path / "nothing") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_kind_are_refused(clip_folder, hubert_folder):
    expected = {
        (Modality.FACE, hubert_folder): "'hubert'; expected 'clip'",
        (Modality.AUDIO, clip_folder): "'clip'; expected 'hubert'",
        (Modality.AU, clip_folder): "has no open_clip_config.json",
    }
    for (modality, folder), reason in expected.items():
        with pytest.raises(WeightsError, match=reason):
            build_encoder(modality, PRETRAINED[modality], weights=str(folder))


def test_a_checkpoint_with_holes_is_refused_and_never_filled_at_random(tmp_path, clip_folder, open_clip_folder):
    for modality, folder in ((Modality.FACE, clip_folder), (Modality.AU, open_clip_folder)):
        copy = Path(shutil.copytree(folder, tmp_path / folder.name))
        (file,) = copy.glob("*.safetensors")
        state = safetensors.torch.load_file(file)
        safetensors.torch.save_file({k: v for k, v in state.items() if "projection" not in k}, file, {"format": "pt"})
        with pytest.raises(WeightsError, match="projection") as caught:
            build_encoder(modality, PRETRAINED[modality], weights=str(copy))
        assert "\n" not in str(caught.value)


def test_a_name_of_another_modality_is_refused():
    with pytest.raises(ValueError, match="DCT is not one for audio: expected PROSODY, HUBERT_LARGE"):
        build_encoder("audio", "DCT")
    with pytest.raises(ValueError, match="HUBERT_LARGE is not one for face"):
        build_encoder(Modality.FACE, "HUBERT_LARGE")
    with pytest.raises(ValueError, match="multi has no encoder"):
        build_encoder(Modality.MULTI, "DCT")
