"""The embedded encoders by their meaning, and the names under which any encoder is asked for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from affect.core.schema import Modality
from affect.core.weights import resolve_weights
from affect.features.store import FeatureSpec, FeatureStore
from extractors.encoders import EMBEDDED, NAMED, Encoder, build_encoder
from extractors.media.decode import load_audio, sound_clips
from tiny_encoders import SENTENCES, check_batch_equals_single, encode, frames, save, sounds, tone

ITEMS = {
    Modality.FRAME: [frames(5), frames(0), frames(1, 90, 40, seed=1), frames(3, 3, 3, seed=2)],
    Modality.AUDIO: [sounds(8), None, np.tile(tone(200), (8, 1)), sounds(8, seed=2)],
    Modality.AU: [SENTENCES, [], ["Cheek raiser."], [f"Sentence {i}." for i in range(20)]],
}


def embedded(modality: Modality) -> Encoder:
    return build_encoder(modality, EMBEDDED[modality].name)


@pytest.mark.parametrize("modality", ITEMS)
def test_a_batch_gives_what_its_items_give_one_by_one(modality):
    check_batch_equals_single(embedded(modality), ITEMS[modality])


@pytest.mark.parametrize("modality", ITEMS)
def test_the_store_takes_features_and_provenance_as_they_are(tmp_path, modality):
    encoder = embedded(modality)
    store, spec = FeatureStore(tmp_path, "demo"), FeatureSpec(modality, encoder.name, encoder.dim)
    for i, array in enumerate(encode(encoder, ITEMS[modality])):
        store.write(spec, f"clip{i}", array, encoder.provenance())
        assert np.array_equal(store.read(spec, f"clip{i}"), array)
    found = store.provenance(spec)
    assert {"family", "weights", "layer", "pooling", "preprocessing", "versions"} <= found.keys()
    assert not found["weights"]


def test_the_embedded_encoders_and_what_workers_prepare_need_no_torch():
    code = (
        "import sys; from extractors.encoders import EMBEDDED, build_encoder, prepare; "
        "[build_encoder(m, e.name).provenance() for m, e in EMBEDDED.items()]; "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_pictures_do_not_change_with_brightness_and_contrast_but_with_what_they_show():
    encoder = embedded(Modality.FACE)
    picture = frames(1, 60, 60).astype(float).repeat(4, axis=1).repeat(4, axis=2)
    dim = (picture * 0.5 + 40).astype(np.uint8)
    bright, faint, other = encode(encoder, [picture.astype(np.uint8), dim, picture[:, :, ::-1].astype(np.uint8)])
    np.testing.assert_allclose(bright, faint, atol=0.05)
    assert np.corrcoef(bright[0], other[0])[0, 1] < 0.5


def test_a_stripe_pattern_lights_up_its_own_frequency():
    columns = 127 + 100 * np.cos(np.pi * 3 * (np.arange(48) + 0.5) / 48)
    stripes = np.broadcast_to(columns[None, None, :, None], (1, 48, 48, 3)).astype(np.uint8)
    row = np.abs(encode(embedded(Modality.FRAME), [stripes])[0][0])
    # order by frequency: (0,1) (1,0) (1,1) (0,2) (2,0) (1,2) (2,1) (2,2) (0,3)
    assert row.argmax() == 8
    assert row[8] > 10 * np.delete(row, 8).max()


def test_a_flat_picture_is_finite_and_small():
    row = encode(embedded(Modality.FACE), [np.full((1, 30, 30, 3), 77, np.uint8)])[0]
    assert np.abs(row).max() < 1e-6


def test_silence_and_noise_floor_are_finite():
    encoder = embedded(Modality.AUDIO)
    silence, hiss = encode(encoder, [np.zeros((8, 32_000), np.float32), sounds() * 1e-5])
    assert np.isfinite(silence).all()
    assert np.isfinite(hiss).all()
    assert np.abs(silence).max() < 10


def test_pitch_is_in_octaves_and_its_rise_has_a_sign():
    encoder = embedded(Modality.AUDIO)
    glide = (0.3 * np.sin(2 * np.pi * np.cumsum(np.linspace(150, 300, 32_000)) / 16_000)).astype(np.float32)
    low, high, rising, falling = encode(encoder, [np.stack([tone(120), tone(240), glide, glide[::-1]])])[0]
    assert high[0] - low[0] == pytest.approx(1, abs=0.02)
    slope = 5
    assert rising[slope] == pytest.approx(0.5, abs=0.1)  # an octave in two seconds
    assert falling[slope] == pytest.approx(-0.5, abs=0.1)
    assert abs(low[slope]) < 0.01


def test_noise_has_no_pitch_and_a_tone_has_nothing_else():
    voiced_share = 18
    noise, pure = encode(embedded(Modality.AUDIO), [np.stack([sounds(1)[0], tone(200)])])[0]
    assert noise[voiced_share] < 0.1
    assert pure[voiced_share] > 0.9


def test_equal_clips_have_equal_rows_whatever_stands_beside_them():
    encoder = embedded(Modality.AUDIO)
    a, b = tone(150), tone(300)
    rows = encode(encoder, [np.stack([a, b, a, a])])[0]
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[0], rows[3])
    np.testing.assert_allclose(rows[1], encode(encoder, [b[None]])[0][0], rtol=1e-5, atol=1e-5)


def test_angry_speech_is_louder_and_higher_than_calm_speech(shared):
    folder = shared / "data/speech/ravdess"

    def mean_row(emotion: str) -> np.ndarray:
        items = [sound_clips(load_audio(path)) for path in sorted(folder.glob(f"03-01-{emotion}-*.wav"))]
        return np.concatenate(encode(embedded(Modality.AUDIO), items)).mean(axis=0)

    calm, angry = mean_row("02"), mean_row("05")
    pitch, loudness = 0, 9
    assert angry[pitch] > calm[pitch] + 0.2
    assert angry[loudness] > calm[loudness] + 0.3


def test_text_rows_have_length_one_and_tell_texts_apart():
    encoder = embedded(Modality.AU)
    rows = encode(encoder, [["brow raised", "raised brow", "Brow RAISED!", "", "...", "jaw drops wide"]])[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    similar = rows @ rows.T
    assert similar[0, 2] == pytest.approx(1)
    assert 0.2 < similar[0, 1] < 0.9  # the same words in another order
    assert abs(similar[0, 5]) < 0.2
    assert similar[3, 4] == pytest.approx(1)


def test_text_hashes_are_the_same_in_every_process():
    row = encode(embedded(Modality.AU), [["raised"]])[0][0]
    # CRC-32 of the word and of its pairs with the marks at both ends
    assert {i: float(np.sign(row[i])) for i in np.flatnonzero(row).tolist()} == {211: 1.0, 412: -1.0, 439: -1.0}


@pytest.mark.parametrize("name", sorted({name for names in NAMED.values() for name in names} - {"AU_VALUES"}))
def test_every_short_name_has_weights_to_download(name, monkeypatch):
    for variable in (f"AFFECT_{name}", "AFFECT_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    assert "/" in resolve_weights(name)


def test_weights_are_found_by_environment_variable_or_as_the_name_itself(tmp_path, monkeypatch):
    folder = save("clip", tmp_path)
    monkeypatch.setenv("AFFECT_CLIP_VIT_LARGE", str(folder))
    assert build_encoder("face", "CLIP_VIT_LARGE").dim == 20
    assert build_encoder("face", str(folder)).name == str(folder)
    assert build_encoder("face", f"hf:{folder}").name == f"hf:{folder}"


def test_a_prefix_of_the_weights_counts_more_than_the_name(tmp_path, monkeypatch):
    folder = save("bert", tmp_path)
    monkeypatch.setenv("AFFECT_CLIP_VITB32", f"hf:{folder}")
    encoder = build_encoder("au", "CLIP_VITB32")
    assert (encoder.name, encoder.provenance()["model"]) == ("CLIP_VITB32", "bert")
    assert build_encoder("au", "open_clip:somewhere", weights=f"hf:{folder}").provenance()["model"] == "bert"


@pytest.mark.parametrize(
    "modality, name, message",
    [
        ("audio", "DCT", "DCT is not one for audio: expected PROSODY, HUBERT_LARGE, WAVLM_LARGE, DATA2VEC_BASE, hf:"),
        (Modality.FACE, "WAVLM_LARGE", "WAVLM_LARGE is not one for face: expected DCT, CLIP_VIT_LARGE, SIGLIP_SO"),
        ("au", "DINO2_LARGE", "expected HASHED_NGRAMS, CLIP_VITB32, AU_VALUES, hf:<folder or hub id>, open_clip:"),
        (Modality.MULTI, "DCT", "multi has no encoder"),
        ("face", "timm:resnet", "found the prefix 'timm'; for face expected DCT, .* hf:<folder .*, open_clip:<arch"),
        ("face", "fer:", "found nothing behind the prefix; for face expected DCT"),
        ("audio", "open_clip:ViT-B-32/openai", "found the prefix 'open_clip'; for audio expected PROSODY"),
    ],
)
def test_a_name_of_another_modality_or_an_unknown_prefix_is_refused(modality, name, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(modality, name)
