"""A language model and a data set so small that a test can train on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from affect.core.schema import Modality
from affect.data.config import Config, parse_config
from affect.features.store import FeatureStore

DIMS = {Modality.FRAME: 12, Modality.FACE: 12, Modality.AUDIO: 10, Modality.AU: 8}


def save_tiny_llm(folder: Path, corpus: list[str]) -> Path:
    """Save a random two-layer Qwen2 language model with a BPE tokenizer trained on `corpus`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(bpe.get_vocab()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def save_tiny_world(tmp_path: Path, tiny_llm: Path) -> Config:
    """Write table and features of the tiny world below a folder and return its configuration."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(12)]
    feelings = ["happy", "sad"] * 6
    pd.DataFrame(
        {
            "name": names,
            "subtitle": ["i see"] * 12,
            "openset": [f"['{feeling}']" for feeling in feelings],
            "reason": [f"The face moves, so the person feels {feeling}." for feeling in feelings],
            "split": ["train"] * 8 + ["test"] * 4,
        }
    ).to_csv(tmp_path / "clips.csv", index=False)
    config = parse_config(
        {
            "model": {
                "llama_model": str(tiny_llm),
                "lora_r": 4,
                "lora_dropout": 0.1,
                "num_multi_query_token": 4,
                "qformer_hidden_size": 16,
                "qformer_heads": 2,
                "qformer_intermediate_size": 32,
                "preextracted_visual_dim": DIMS[Modality.FACE],
                "preextracted_acoustic_dim": DIMS[Modality.AUDIO],
                "preextracted_au_dim": DIMS[Modality.AU],
                "standardize_features": True,
                "normalize_tokens": True,
            },
            "datasets": {
                "toy": {
                    "csv_path": str(tmp_path / "clips.csv"),
                    "preextracted_root": str(tmp_path / "features"),
                    "visual_encoder": "V",
                    "acoustic_encoder": "A",
                    "au_encoder": "U",
                    "modality_dropout": 0.2,
                }
            },
            "run": {
                "init_lr": 1e-3,
                "warmup_steps": 2,
                "max_epoch": 3,
                "iters_per_epoch": 4,
                "batch_size_train": 4,
                "num_workers": 0,
                "device": "cpu",
                "output_dir": str(tmp_path / "run"),
                "visualize_training": False,
            },
            "inference": {"max_new_tokens": 8, "device": "cpu"},
        },
        "tiny",
    )
    section = config.datasets["toy"]
    store = FeatureStore(Path(section.preextracted_root), "toy")
    for i, name in enumerate(names):
        for stream, dim in DIMS.items():
            rows = 5 if stream == Modality.AU else 8
            if (name, stream) in {("c3", Modality.FACE), ("c3", Modality.AU), ("c4", Modality.AUDIO)}:
                rows = 0
            array = (rng.normal(size=(rows, dim)) + i % 2).astype(np.float32)
            if stream == Modality.AU:
                array /= np.linalg.norm(array, axis=1, keepdims=True)
            store.write(section.spec(stream, dim), name, array, {})
    return config
