"""Text encoders of open_clip and transformers against the models run by hand."""

import numpy as np
import open_clip
import pytest
import torch
import transformers

from extractors.encoders import build_encoder
from extractors.encoders.pretrained import WeightsError
from tiny_encoders import SENTENCES, check_batch_equals_single, encode, save, save_tokenizer

KINDS = ["open_clip", "clip_text", "clip_text_tower", "siglip_text", "bert", "gpt2", "t5"]
ITEMS = [SENTENCES, [], ["Cheek raiser."], [f"Sentence {i}." for i in range(260)]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    return {kind: save(kind, place) for kind in KINDS}


def encoder_of(folders, kind):
    return build_encoder("au", f"{'open_clip' if kind == 'open_clip' else 'hf'}:{folders[kind]}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_items_give_one_by_one(folders, kind):
    check_batch_equals_single(encoder_of(folders, kind), ITEMS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_length_one_and_tell_texts_apart(folders, kind):
    rows = encode(encoder_of(folders, kind), [SENTENCES])[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


@torch.inference_mode()
def by_hand(kind: str, folder, text: str) -> np.ndarray:
    """Features [1, D] of one text alone, so without padding where the model does not want it."""
    if kind == "open_clip":
        model = open_clip.create_model(f"local-dir:{folder}").eval()
        return model.encode_text(open_clip.get_tokenizer("ViT-B-32")([text]), normalize=True).numpy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    if kind == "clip_text_tower":
        model = transformers.CLIPTextModelWithProjection.from_pretrained(folder).eval()
        row = model(torch.tensor([ids])).text_embeds
        return (row / row.norm()).numpy()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if kind == "clip_text":
        states = model.text_model(torch.tensor([ids])).last_hidden_state
        row = model.text_projection(states[:, -1])
    elif kind == "siglip_text":
        states = model.text_model(torch.tensor([ids + [tokenizer.pad_token_id] * (24 - len(ids))])).last_hidden_state
        row = model.text_model.head(states[:, -1])
    elif kind == "t5":
        row = model.encoder(torch.tensor([ids])).last_hidden_state.mean(dim=1)
    else:
        row = model(torch.tensor([ids])).last_hidden_state.mean(dim=1)
    return (row / row.norm()).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_model_run_by_hand(folders, kind):
    texts = ["Cheek raiser.", "Jaw drop!"]
    for text, row in zip(texts, encode(encoder_of(folders, kind), [texts])[0], strict=True):
        np.testing.assert_allclose(row, by_hand(kind, folders[kind], text)[0], atol=1e-5)


def test_texts_longer_than_the_model_are_cut(folders):
    encoder = encoder_of(folders, "bert")
    long = "Nose wrinkler. " * 3
    first, same, other = encode(encoder, [[long, long + "And more.", "x" + long]])[0]
    assert encoder.provenance()["preprocessing"] == "40 tokens at most"
    np.testing.assert_allclose(first, same, atol=1e-6)
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.parametrize(
    "kind, layer, pooling",
    [
        ("clip_text", "text projection", "the model's own, then length 1"),
        ("clip_text_tower", "text projection", "the model's own, then length 1"),
        ("bert", "last layer", "mean over tokens, then length 1"),
    ],
)
def test_provenance_says_what_is_pooled(folders, kind, layer, pooling):
    found = encoder_of(folders, kind).provenance()
    assert (found["layer"], found["pooling"], found["precision"]) == (layer, pooling, "float32")


@pytest.mark.parametrize(
    "weights, model_name, options",
    [
        ("ViT-B-32/openai", "ViT-B-32", {"pretrained": "openai", "force_quick_gelu": True}),
        ("ViT-B-32/laion2b_s34b_b79k", "ViT-B-32", {"pretrained": "laion2b_s34b_b79k", "force_quick_gelu": False}),
        ("someone/model", "hf-hub:someone/model", {}),
    ],
)
@pytest.mark.parametrize("modality, name", [("au", "CLIP_VITB32"), ("au", "open_clip"), ("face", "open_clip")])
def test_open_clip_is_asked_for_the_activation_that_weights_were_trained_with(
    monkeypatch, modality, name, weights, model_name, options
):
    asked = []

    def create_model(name, **given):
        asked.append((name, given))
        raise RuntimeError("not here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(WeightsError, match=f"no usable weights at '{weights}' .*not here"):
        if name == "open_clip":
            build_encoder(modality, f"open_clip:{weights}")
        else:
            build_encoder(modality, name, weights=weights)
    assert asked == [(model_name, {"device": "cpu", "require_pretrained": True, **options})]


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path):
    folder = save("bert", tmp_path)
    save_tokenizer(folder, 40)
    with pytest.raises(WeightsError, match="neither a padding nor an end token"):
        build_encoder("au", f"hf:{folder}")
