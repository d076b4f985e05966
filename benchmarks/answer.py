"""Answers per second of a random model of a chosen size, one clip at a time and in batches."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from affect.answer.answerer import Answerer
from affect.answer.loading import inference_device
from affect.core.layouts import LAYOUTS
from affect.data.config import Config
from affect.data.dataset import ClipDataset, open_datasets
from affect.models.affectgpt import AffectGPT, build_affectgpt
from benchmarks.world import PRESETS, language_parameters, make_world, matmul_tflops, peak_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of this benchmark."""
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny")
    add("--random-init", "--random_init", action="store_true", help="the only kind of weights so far; said for clarity")
    add("--batch_size", type=int, default=8, help="compared with answering clip by clip")
    add("--clips", type=int, default=32)
    add("--max_new_tokens", type=int, default=64)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="processor threads")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer random clips both ways; return the figures and whether the answers are the same."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = make_world(PRESETS[args.preset], Path(folder), args.clips, 1, args.device)
        config.inference.max_new_tokens = args.max_new_tokens
        device = inference_device(config.inference)
        layouts = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
        torch.manual_seed(0)
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        model = build_affectgpt(config.model, layouts, torch.bfloat16 if half else torch.float32).to(device).eval()
        (dataset,) = open_datasets(config, "test")
        _answer(model, config, dataset, args.batch_size, limit=args.batch_size)  # first calls choose kernels
        single = _answer(model, config, dataset, 1)
        batched = _answer(model, config, dataset, args.batch_size)
    return {
        "benchmark": "infer",
        "preset": args.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {args.threads} threads",
        "clips": args.clips,
        "max_new_tokens": args.max_new_tokens,
        "batch_1": single.pop("figures"),
        f"batch_{args.batch_size}": batched.pop("figures"),
        "faster": round(single["seconds"] / batched["seconds"], 2),
        "same_answers": sum(a == b for a, b in zip(single["answers"], batched["answers"], strict=True)),
        **peak_memory(device),
        **({"matmul_tflops_per_second": round(matmul_tflops(device), 1)} if device.type == "cuda" else {}),
    }


def _answer(
    model: AffectGPT, config: Config, dataset: ClipDataset, batch_size: int, limit: int | None = None
) -> dict[str, Any]:
    """Answer a data set, or its first clips, and time it."""
    config = config.model_copy(deep=True)
    config.inference.batch_size = batch_size
    answerer = Answerer(model, config, dataset.config.face_or_frame, model.generate)
    answers, sizes = [], []
    answerer.look = lambda batch: sizes.append((int(batch.attention_mask.sum()), batch.attention_mask.numel()))
    start = time.perf_counter()
    for answer in answerer.answer_dataset(dataset):
        answers.append(answer.answer)
        if len(answers) == limit:
            break
    seconds = time.perf_counter() - start
    rate = len(answers) / seconds
    tokens = rate * config.inference.max_new_tokens  # random weights hardly ever end an answer
    shown, cells = (sum(part) for part in zip(*sizes, strict=True))
    flops = 2 * language_parameters(config) * (shown + tokens * seconds)
    start = time.perf_counter()
    for index in range(len(answers)):
        dataset.features(index)
    waited = time.perf_counter() - start  # features are read between batches, by the same process
    figures = {
        "clips_per_second": round(rate, 3),
        "new_tokens_per_second": round(tokens, 1),
        "padding_share": round(1 - shown / cells, 4),
        "data_wait_share": round(waited / seconds, 4),
        "model_tflops_per_second": round(flops / seconds / 1e12, 4),
    }
    return {"answers": answers, "seconds": seconds, "figures": figures}
