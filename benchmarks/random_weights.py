"""Weights of published models' true sizes and formats, but random: for measuring speed where the real ones are not."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor


def save_random_weights(name: str, folder: Path) -> Path:
    """Write a folder as the loader of `name` expects it; raises ValueError for a name whose size is not known here."""
    if name not in _MAKERS:
        raise ValueError(f"no random weights for {name!r}: expected one of {', '.join(_MAKERS)}")
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    _MAKERS[name](folder)
    return folder


def _clip_vit_large(folder: Path) -> None:
    """The picture tower of ViT-L/14; the text tower is not used and so is one layer."""
    vision = {**_LARGE, "patch_size": 14, "image_size": 224}
    text = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "vocab_size": 100}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def _hubert_large(folder: Path) -> None:
    config = HubertConfig(**_LARGE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)


def _clip_vitb32(folder: Path) -> None:
    """The text tower of ViT-B/32 in open_clip's format; the picture tower is not used and so is one layer."""
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"] = {**config["vision_cfg"], "layers": 1}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")


_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_MAKERS = {"CLIP_VIT_LARGE": _clip_vit_large, "HUBERT_LARGE": _hubert_large, "CLIP_VITB32": _clip_vitb32}
