"""A data set and a language model of a chosen size to measure training and inference on, all of it random."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from affect.core.facs import ACTION_UNITS
from affect.core.schema import STORED_MODALITIES
from affect.data.config import Config, parse_config
from affect.data.manifest import read_clips
from affect.data.prompts import DEFAULT_PROMPTS
from affect.features.store import FeatureStore
from extractors.run.settings import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Preset:
    """Sizes of a Qwen2 language model and of the LoRA on it."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False
    lora_r: int = 16


PRESETS = {
    "tiny": Preset(256, 1024, 4, 4, 2, 8192),
    "qwen2.5-0.5b": Preset(896, 4864, 24, 14, 2, 151_936, tie_word_embeddings=True),
    "qwen2.5-7b": Preset(3584, 18_944, 28, 28, 4, 152_064),
}
"""The published models' geometries (their config.json files), and one that a laptop trains."""

SHORTEST, LONGEST = 180, 420
"""Tokens of prompt and answer together, spread as those of the MER captions."""
DIMS = {"preextracted_visual_dim": 768, "preextracted_acoustic_dim": 1024, "preextracted_au_dim": 512}


def save_language_model(preset: Preset, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random language model of a preset's size, and a small tokenizer, as Hugging Face folders are."""
    save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {name: value for name, value in vars(preset).items() if name != "lora_r"}
    config = Qwen2Config(**sizes, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer with Qwen's chat marks, trained on the words that this project uses."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    words = [f"{unit.name} {unit.muscle} {unit.part} {unit.movement}" for unit in ACTION_UNITS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([DEFAULT_PROMPTS.read_text(), *words] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>").save_pretrained(folder)


def make_world(preset: Preset, root: Path, clips: int, batch_size: int, device: str = "cpu", **run: object) -> Config:
    """Write features and table of random clips and a language model below `root`; return a training configuration."""
    model = root / "llm"
    if not model.is_dir():
        save_language_model(preset, model, torch.bfloat16 if device.startswith("cuda") else torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    config = parse_config(
        {
            "model": {"llama_model": str(model), "lora_r": preset.lora_r, "lora_dropout": 0.0, **DIMS},
            "datasets": {
                "random": {
                    "csv_path": str(root / "clips.csv"),
                    "preextracted_root": str(root / "features"),
                    "face_or_frame": "multiface_audio_face_frame_au_text",
                    "label_type": "description",
                }
            },
            "run": {
                "batch_size_train": batch_size,
                "device": device,
                "amp": device.startswith("cuda"),
                "num_workers": 1,
                "output_dir": str(root / "run"),
                **run,
            },
            "inference": {"device": device},
        },
        "benchmark",
    )
    if not (root / "clips.csv").is_file():
        _write_clips(config, root / "clips.csv", clips, tokenizer)
    return config


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory used so far: on a GPU since its figures were last reset."""
    if device.type == "cuda":
        return {"peak_gpu_gb": round(torch.cuda.max_memory_allocated(device) / 2**30, 2)}
    return {"peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)}


def clip_names(config: Config) -> list[str]:
    """Return the clips of a world."""
    return [clip.name for clip in read_clips("random", config.datasets["random"])]


def link_videos(videos: Path, folder: Path, names: list[str]) -> None:
    """Put a link to one of the videos into a folder for every name, taking turns."""
    found = sorted(path for path in videos.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise ValueError(f"{videos}: expected videos, found none")
    folder.mkdir()
    for name, path in zip(names, cycle(found), strict=False):
        (folder / f"{name}{path.suffix}").symlink_to(path.resolve())


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
            array = rng.normal(size=(8, spec.dim)).astype(np.float32)
            array /= np.linalg.norm(array, axis=1, keepdims=True)
            store.write(spec, name, array, {})
    pd.DataFrame(rows).to_csv(table, index=False)


def language_parameters(config: Config) -> int:
    """Return how many weights of the language model every token goes through."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.model.llama_model))
    return sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()


def matmul_tflops(device: torch.device, side: int = 8192, rounds: int = 20) -> float:
    """Return what a plain bfloat16 matrix product reaches on this device."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        a @ b
    torch.cuda.synchronize()
    return 2 * side**3 * rounds / (time.perf_counter() - start) / 1e12
