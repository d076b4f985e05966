"""Answers per second of a random model of a chosen size, one clip at a time and in batches."""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from affect.answer.answerer import Answerer
from affect.answer.setup import inference_device
from affect.core.device import model_precision
from affect.data.config import Config
from affect.data.dataset import ClipDataset, open_datasets
from affect.models.affectgpt import AffectGPT, build_affectgpt
from benchmarks.world import PRESETS, add_world_arguments, device_name, language_parameters, limits, make_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of this benchmark."""
    add_world_arguments(parser, batch_size=8, clips=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer random clips both ways; return the figures and whether the answers are the same."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = make_world(PRESETS[args.preset], Path(folder), args.clips, 1, args.device)
        config.inference.max_new_tokens = args.max_new_tokens
        device = inference_device(config.inference)
        layouts = [section.layout for section in config.datasets.values()]
        torch.manual_seed(0)
        model = build_affectgpt(config.model, layouts, model_precision(device)).to(device).eval()
        (dataset,) = open_datasets(config, "test")
        _answer(model, config, dataset, args.batch_size, limit=args.batch_size)  # first calls choose kernels
        single, seconds, figures = _answer(model, config, dataset, 1)
        batched, seconds_batched, figures_batched = _answer(model, config, dataset, args.batch_size)
    return {
        "preset": args.preset,
        "device": device_name(device),
        "clips": args.clips,
        "max_new_tokens": args.max_new_tokens,
        "batch_1": figures,
        f"batch_{args.batch_size}": figures_batched,
        "faster": round(seconds / seconds_batched, 2),
        "same_answers": sum(a == b for a, b in zip(single, batched, strict=True)),
        **limits(device),
    }


def _answer(
    model: AffectGPT, config: Config, dataset: ClipDataset, batch_size: int, limit: int | None = None
) -> tuple[list[str], float, dict[str, float]]:
    """Answer a data set, or its first clips; return the answers, the seconds and the figures."""
    config = config.model_copy(deep=True)
    config.inference.batch_size = batch_size
    sizes: list[tuple[int, int]] = []
    answerer = Answerer(model, config, dataset.config.face_or_frame, model.generate)
    answerer.look = lambda batch: sizes.append((int(batch.attention_mask.sum()), batch.attention_mask.numel()))
    start = time.perf_counter()
    answers = [answer.answer for answer in islice(answerer.answer_dataset(dataset), limit)]
    seconds = time.perf_counter() - start
    new = len(answers) * config.inference.max_new_tokens  # random weights hardly ever end an answer
    shown, cells = (sum(part) for part in zip(*sizes, strict=True))
    start = time.perf_counter()
    for index in range(len(answers)):
        dataset.features(index)
    waited = time.perf_counter() - start  # features are read between batches, by the same process
    figures = {
        "clips_per_second": round(len(answers) / seconds, 3),
        "new_tokens_per_second": round(new / seconds, 1),
        "padding_share": round(1 - shown / cells, 4),
        "data_wait_share": round(waited / seconds, 4),
        "model_tflops_per_second": round(2 * language_parameters(config) * (shown + new) / seconds / 1e12, 4),
    }
    return answers, seconds, figures
