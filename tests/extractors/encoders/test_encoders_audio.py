"""Sound encoders of transformers against the models run by hand."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from extractors.encoders import build_encoder
from extractors.encoders.prepare import as_it_is, level_together
from extractors.encoders.pretrained import WeightsError
from tiny_encoders import check_batch_equals_single, encode, save, sounds, tone

KINDS = ["hubert", "wavlm", "data2vec", "wav2vec2"]
ITEMS = [
    sounds(8),
    None,
    sounds(30, seed=1),
    np.tile(tone(200), (8, 1)),
    sounds(0),
    sounds(3, samples=8000),
    np.zeros((2, 32_000), np.float32),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("sound")
    return {kind: save(kind, place) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_items_give_one_by_one(folders, kind):
    check_batch_equals_single(build_encoder("audio", f"hf:{folders[kind]}"), ITEMS)


@torch.inference_mode()
def by_hand(folder, clips: np.ndarray, norms_first: bool) -> np.ndarray:
    """Mean of the last four hidden states as transformers 4 listed them: the last one after the norm."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    hidden = model.feature_projection(model.feature_extractor(torch.tensor(clips)).transpose(1, 2))
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    hidden = hidden + model.encoder.pos_conv_embed(hidden)
    hidden = hidden if norms_first else model.encoder.layer_norm(hidden)
    states, bias = [], None
    for layer in model.encoder.layers:
        states.append(hidden)
        # WavLM's first layer makes the position bias of all others
        output = layer(hidden) if model.config.model_type != "wavlm" else layer(hidden, position_bias=bias)
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        bias = rest[0] if rest else None
    states.append(model.encoder.layer_norm(hidden) if norms_first else hidden)
    return torch.stack(states[-4:]).mean(0).mean(1).numpy()


@pytest.mark.parametrize(
    "kind, norms_first", [("hubert", True), ("wavlm", True), ("data2vec", False), ("wav2vec2", False)]
)
def test_features_are_those_of_the_model_run_by_hand(folders, kind, norms_first):
    clips = sounds() * np.linspace(0.1, 3, 8, dtype=np.float32)[:, None]
    level = clips if kind == "wav2vec2" else (clips - clips.mean()) / np.sqrt(clips.var() + 1e-7)
    expected = by_hand(folders[kind], level, norms_first)
    found = encode(build_encoder("audio", str(folders[kind])), [clips])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_workers_level_sound_exactly_as_the_feature_extractor_does(folders):
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folders["hubert"])
    for clips in (sounds(), 1e-4 * sounds(3), np.zeros((2, 400), np.float32)):
        expected = extractor(clips.reshape(-1), sampling_rate=16_000, return_tensors="np").input_values
        prepared = level_together(clips)
        assert prepared.dtype == np.float32
        assert np.array_equal(prepared, expected.reshape(clips.shape))
    assert level_together(None) is None
    assert level_together(sounds(0)).shape == (0, 32_000)


def test_sound_is_levelled_only_where_the_checkpoint_says_so(folders):
    levelled, as_given = (build_encoder("audio", f"hf:{folders[kind]}") for kind in ("hubert", "wav2vec2"))
    assert (levelled.prepare, as_given.prepare) == (level_together, as_it_is)
    assert levelled.provenance()["preprocessing"] == "16000 Hz, mean 0 and variance 1 over all clips"
    assert as_given.provenance()["preprocessing"] == "16000 Hz, as it is"


def test_sound_clips_are_levelled_together(folders):
    encoder = build_encoder("audio", "HUBERT_LARGE", weights=str(folders["hubert"]))
    clips = sounds()
    louder_rest = np.concatenate([clips[:1], 5 * clips[1:]])
    first, scaled, other = encode(encoder, [clips, 7 * clips, louder_rest])
    np.testing.assert_allclose(first, scaled, atol=1e-4)
    assert np.abs(first[0] - other[0]).max() > 1e-3


def test_weights_of_old_checkpoints_are_read(tmp_path, folders):
    """Published HuBERT weights are .bin files that name the weight norm's parts weight_g and weight_v."""
    state = transformers.HubertModel.from_pretrained(folders["hubert"]).state_dict()
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in state.items()
    }
    assert any(key.endswith("weight_g") for key in old)
    for file in folders["hubert"].glob("*.json"):
        shutil.copy(file, tmp_path)
    torch.save(old, tmp_path / "pytorch_model.bin")
    found, expected = (build_encoder("audio", "HUBERT_LARGE", weights=str(f)) for f in (tmp_path, folders["hubert"]))
    assert np.array_equal(encode(found, [sounds()])[0], encode(expected, [sounds()])[0])


@pytest.mark.parametrize("name, kind", [("WAVLM_LARGE", "wavlm"), ("DATA2VEC_BASE", "data2vec-audio")])
def test_short_names_take_models_of_their_type_only(folders, name, kind):
    assert build_encoder("audio", name, weights=str(folders[kind.removesuffix("-audio")])).dim == 16
    with pytest.raises(WeightsError, match=f"'hubert'; expected '{kind}'"):
        build_encoder("audio", name, weights=str(folders["hubert"]))


def test_models_of_spectra_are_refused_with_what_they_take(tmp_path):
    with pytest.raises(WeightsError, match="type 'whisper', which takes input_features; expected one that takes sound"):
        build_encoder("audio", f"hf:{save('whisper', tmp_path)}")


def test_models_of_another_sample_rate_are_refused(tmp_path):
    folder = save("hubert", tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=24_000).save_pretrained(folder)
    with pytest.raises(WeightsError, match="at 24000 Hz; expected a model of waves at 16000 Hz"):
        build_encoder("audio", f"hf:{folder}")
