"""A data set and a language model of a chosen size to measure training and inference on, all of it random."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from affect.core.facs import ACTION_UNITS
from affect.core.schema import STORED_MODALITIES
from affect.data.config import Config, parse_config
from affect.data.prompts import DEFAULT_PROMPTS
from affect.engine.metrics import peak_memory
from affect.features.store import FeatureStore
from benchmarks.store import random_rows
from examples.demo.language_model import train_tokenizer


@dataclass(frozen=True)
class Preset:
    """Sizes of a Qwen2 language model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False


PRESETS = {
    "tiny": Preset(256, 1024, 4, 4, 2, 8192),
    "qwen2.5-0.5b": Preset(896, 4864, 24, 14, 2, 151_936, tie_word_embeddings=True),
    "qwen2.5-7b": Preset(3584, 18_944, 28, 28, 4, 152_064),
}
"""The published models' geometries (their config.json files), and one that a laptop trains."""

SHORTEST, LONGEST = 180, 420
"""Tokens of prompt and answer together, spread as those of the MER captions."""
DIMS = {"preextracted_visual_dim": 768, "preextracted_acoustic_dim": 1024, "preextracted_au_dim": 512}


def add_world_arguments(parser: argparse.ArgumentParser, batch_size: int, clips: int) -> None:
    """Declare the settings of a world; batch_size and clips: their defaults."""
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny")
    add("--random-init", "--random_init", action="store_true", help="the only kind of weights so far; said for clarity")
    add("--batch_size", type=int, default=batch_size)
    add("--clips", type=int, default=clips)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="processor threads")


def make_world(preset: Preset, root: Path, clips: int, batch_size: int, device: str = "cpu", **run: object) -> Config:
    """Write features and table of random clips and a language model below `root`; return a training configuration."""
    on_gpu = device.startswith("cuda")
    tokenizer = _save_language_model(preset, root / "llm", torch.bfloat16 if on_gpu else torch.float32)
    section = {"csv_path": str(root / "clips.csv"), "preextracted_root": str(root / "features")}
    section |= {"face_or_frame": "multiface_audio_face_frame_au_text", "label_type": "description"}
    training = {"batch_size_train": batch_size, "device": device, "amp": on_gpu, "num_workers": 1}
    content = {
        "model": {"llama_model": str(root / "llm"), "lora_r": 16, "lora_dropout": 0.0, **DIMS},
        "datasets": {"random": section},
        "run": {**training, "output_dir": str(root / "run"), **run},
        "inference": {"device": device},
    }
    config = parse_config(content, "benchmark")
    _write_clips(config, root / "clips.csv", clips, tokenizer)
    return config


def _save_language_model(preset: Preset, folder: Path, dtype: torch.dtype) -> PreTrainedTokenizerFast:
    """Write a random language model and a tokenizer with Qwen's chat marks, trained on the words of this project."""
    words = [f"{unit.name} {unit.muscle} {unit.part} {unit.movement}" for unit in ACTION_UNITS.values()]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer([DEFAULT_PROMPTS.read_text(), *words] * 3, 4000, marks, eos_token="<|im_end|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(**asdict(preset), max_position_embeddings=4096, bos_token_id=None, eos_token_id=None)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder)
    return tokenizer


def _write_clips(config: Config, table: Path, clips: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a table whose samples are SHORTEST to LONGEST tokens long, and features for each clip."""
    rng = np.random.default_rng(0)
    section = config.datasets["random"]
    store = FeatureStore(Path(section.preextracted_root), "random")
    words = [unit.movement for unit in ACTION_UNITS.values()]
    prompt_tokens = 120
    rows = []
    for i in range(clips):
        name = f"clip_{i:06d}"
        wanted = int(rng.integers(SHORTEST, LONGEST + 1)) - prompt_tokens
        text = " ".join(rng.choice(words, wanted))
        answer = tokenizer.decode(tokenizer(text).input_ids[:wanted])
        rows.append({"name": name, "subtitle": "I see what you mean.", "openset": "['happy']", "reason": answer})
        for stream in STORED_MODALITIES:
            spec = section.spec(stream, config.model.feature_dim(stream))
            store.write(spec, name, random_rows(spec.dim, rng), {})
    pd.DataFrame(rows).to_csv(table, index=False)


def language_parameters(config: Config) -> int:
    """Return how many weights of the language model every token goes through."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.model.llama_model))
    return sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()


def device_name(device: torch.device) -> str:
    """Return what figures say that they were measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def limits(device: torch.device, side: int = 8192) -> dict[str, float]:
    """Return the most memory used so far and, on a GPU, what a plain bfloat16 matrix product reaches there."""
    peak = peak_memory(device)  # before the product takes its own
    if device.type != "cuda":
        return {"peak_resident_mb": round(peak)}
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = Timer("a @ b", globals={"a": a, "b": b}).timeit(20).median
    return {"peak_gpu_gb": round(peak / 2**10, 2), "matmul_tflops_per_second": round(2 * side**3 / seconds / 1e12, 1)}
