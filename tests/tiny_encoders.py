"""Tiny random encoders saved in the formats of published checkpoints, and material for them to encode."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from extractors.encoders import Encoder

MEAN, STD = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
SIDE = 32
SENTENCES = ["The inner brow is raised.", "The lip corners are pulled down.", "", "Nose wrinkler. " * 100]
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_PATCHES = {"image_size": SIDE, "patch_size": 8}
_WAVE = {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (8, 8, 5),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    **_TOWER,
    "num_hidden_layers": 5,
}
_NORMS_FIRST = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
_SQUARE = {"height": SIDE, "width": SIDE}
_CUT = {"crop_size": _SQUARE, "image_mean": MEAN, "image_std": STD}


def frames(count: int, height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def sounds(count: int = 8, seed: int = 0, samples: int = 32_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (count, samples)).astype(np.float32)


def tone(hertz: float, loudness: float = 0.3) -> np.ndarray:
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(32_000) / 16_000)).astype(np.float32)


def encode(encoder: Encoder, items: Sequence[Any]) -> list[np.ndarray]:
    """What the driver does: prepare each item, then encode all of them."""
    return encoder([encoder.prepare(item) for item in items])


def check_batch_equals_single(encoder: Encoder, items: Sequence[Any]) -> None:
    together = encode(encoder, items)
    assert len(together) == len(items)
    for item, array in zip(items, together, strict=True):
        assert array.dtype == np.float32
        assert array.shape == (0 if item is None else len(item), encoder.dim)
        assert np.isfinite(array).all()
        np.testing.assert_allclose(encode(encoder, [item])[0], array, atol=1e-5)
    assert np.abs(together[0]).max() > 0
    assert encoder([]) == []


def _save(model: PreTrainedModel, folder: Path) -> None:
    with torch.no_grad():  # away from initial zeros and ones, which hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _clip(folder: Path) -> None:
    config = hf.CLIPConfig(
        # the id of the end-of-text token is the tokenizer's
        text_config={**_TOWER, "vocab_size": 300, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 20},
        vision_config={**_TOWER, **_PATCHES},
        projection_dim=20,
    )
    _save(hf.CLIPModel(config), folder)
    hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, **_CUT).save_pretrained(folder)


def _clip_vision_tower(folder: Path) -> None:
    _save(hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**_TOWER, **_PATCHES, projection_dim=20)), folder)
    hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, **_CUT).save_pretrained(folder)


def _siglip(folder: Path) -> None:
    text = {**_TOWER, "vocab_size": 300, "max_position_embeddings": 24, "projection_size": 16}
    _save(hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config={**_TOWER, **_PATCHES})), folder)
    hf.SiglipImageProcessor(size=_SQUARE).save_pretrained(folder)


def _dinov2(folder: Path) -> None:
    # made for larger pictures than it is given, as the published ones are
    _save(hf.Dinov2Model(hf.Dinov2Config(**_TOWER, image_size=56, patch_size=8)), folder)
    hf.BitImageProcessor(size={"shortest_edge": 37}, **_CUT, do_convert_rgb=True).save_pretrained(folder)


def _vit_classifier(folder: Path) -> None:
    _save(hf.ViTForImageClassification(hf.ViTConfig(**_TOWER, **_PATCHES, num_labels=7)), folder)
    hf.ViTImageProcessor(size=_SQUARE).save_pretrained(folder)


def _convnext(folder: Path) -> None:
    _save(hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)), folder)
    hf.ConvNextImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(folder)


def _hubert(folder: Path) -> None:
    """Of the kind of HUBERT_LARGE: norms before the layers, input normalised."""
    _save(hf.HubertModel(hf.HubertConfig(**_WAVE, **_NORMS_FIRST)), folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def _wavlm(folder: Path) -> None:
    _save(hf.WavLMModel(hf.WavLMConfig(**_WAVE, **_NORMS_FIRST)), folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def _data2vec(folder: Path) -> None:
    """Of the kind of DATA2VEC_BASE: a recogniser of speech, with a head that nobody needs here."""
    wave = {key: value for key, value in _WAVE.items() if key != "num_conv_pos_embeddings"}
    config = hf.Data2VecAudioConfig(**wave, num_conv_pos_embeddings=2, conv_pos_kernel_size=3, vocab_size=12)
    _save(hf.Data2VecAudioForCTC(config), folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def _wav2vec2(folder: Path) -> None:
    """Of the kind of the base models: norms after the layers, input as it is."""
    _save(hf.Wav2Vec2Model(hf.Wav2Vec2Config(**_WAVE)), folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)


def _whisper(folder: Path) -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = hf.WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1, **heads)
    _save(hf.WhisperModel(config), folder)
    hf.WhisperFeatureExtractor().save_pretrained(folder)


def save_tokenizer(folder: Path, length: int, **tokens: str) -> None:
    """Save a tokenizer of letters that puts an end token behind each text where it has one."""
    specials = sorted(set(tokens.values()))
    letters = [*specials, *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if end := tokens.get("eos_token"):
        ends = [(end, letters.index(end))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=ends)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **tokens)
    wrapped.save_pretrained(folder)


def _clip_text(folder: Path) -> None:
    _clip(folder)
    save_tokenizer(folder, 20, pad_token="<a>", eos_token="<b>")


def _clip_text_tower(folder: Path) -> None:
    config = hf.CLIPTextConfig(
        **_TOWER, vocab_size=300, eos_token_id=1, pad_token_id=0, max_position_embeddings=20, projection_dim=12
    )
    _save(hf.CLIPTextModelWithProjection(config), folder)
    save_tokenizer(folder, 20, pad_token="<a>", eos_token="<b>")


def _siglip_text(folder: Path) -> None:
    _siglip(folder)
    save_tokenizer(folder, 24, pad_token="<b>", eos_token="<b>")


def _bert(folder: Path) -> None:
    _save(hf.BertForMaskedLM(hf.BertConfig(**_TOWER, vocab_size=300, max_position_embeddings=40)), folder)
    save_tokenizer(folder, 10**30, pad_token="<a>", eos_token="<b>")


def _gpt2(folder: Path) -> None:
    """A decoder whose tokenizer pads on the left and makes nothing of an empty text."""
    config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=300, n_positions=64)
    _save(hf.GPT2LMHeadModel(config), folder)
    save_tokenizer(folder, 64, pad_token="<a>")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": "left"}))


def _t5(folder: Path) -> None:
    config = hf.T5Config(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, vocab_size=300)
    config.decoder_start_token_id = 0
    _save(hf.T5Model(config), folder)
    save_tokenizer(folder, 64, pad_token="<a>", eos_token="<b>")


OPEN_CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def save_open_clip(folder: Path, **preprocess: Any) -> None:
    config = json.dumps({"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(config)
    model = open_clip.model.CLIP(**OPEN_CLIP_CONFIG)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")


SAVE: dict[str, Callable[[Path], None]] = {
    "clip": _clip,
    "clip_vision_tower": _clip_vision_tower,
    "siglip": _siglip,
    "dinov2": _dinov2,
    "vit_classifier": _vit_classifier,
    "convnext": _convnext,
    "hubert": _hubert,
    "wavlm": _wavlm,
    "data2vec": _data2vec,
    "wav2vec2": _wav2vec2,
    "whisper": _whisper,
    "clip_text": _clip_text,
    "clip_text_tower": _clip_text_tower,
    "siglip_text": _siglip_text,
    "bert": _bert,
    "gpt2": _gpt2,
    "t5": _t5,
    "open_clip": save_open_clip,
}
"""Makers of model folders by the kind of model."""


def save(kind: str, folder: Path) -> Path:
    """Save a model of the kind into a folder of its own below `folder`, with the same weights each time."""
    place = folder / kind
    place.mkdir()
    torch.manual_seed(0)
    SAVE[kind](place)
    return place
