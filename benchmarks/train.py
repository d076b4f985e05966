"""Training steps per second on random clips and weights of a chosen size, beside a plain loop on the same data."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from affect.cli.train import fill_sentences, live_stores
from affect.data.config import Config
from affect.data.manifest import read_clips
from affect.engine.launch import start_accelerator
from affect.engine.task import Size
from affect.engine.trainer import start_trainer
from affect.tasks.affectgpt import AffectGPTTask, open_task
from benchmarks.extract import find_videos, link_clips, use_random_weights
from benchmarks.world import PRESETS, add_world_arguments, device_name, language_parameters, limits, make_world

WARM_UP = 3
BLOCK = 5
"""Steps that a way is timed for before the other takes its turn."""
LIVE_STEPS = 3
"""Steps with encoders of the true size, which take long."""

Step = Callable[[], tuple[float, float, Size, float]]
"""Trains one step; returns its seconds, those of them spent waiting for the batch, what it held, and the loss."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of this benchmark."""
    add_world_arguments(parser, batch_size=1, clips=256)
    add = parser.add_argument
    add("--steps", type=int, default=30)
    add("--gradient_checkpointing", action="store_true")
    add("--compile", action="store_true")
    add("--plain", action="store_true", help="also time a loop that computes all logits and batches clips as they come")
    live = "videos: also train with CLIP and HuBERT of the true size reading them on the fly"
    add("--live_from", type=Path, help=live)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps on a random data set; return the figures."""
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in ("gradient_checkpointing", "compile")}
    settings |= {"bucket_by_length": args.batch_size > 1, "max_epoch": 1, "iters_per_epoch": WARM_UP + args.steps}
    with tempfile.TemporaryDirectory() as folder:
        config = make_world(PRESETS[args.preset], Path(folder), args.clips, args.batch_size, args.device, **settings)
        accelerator = start_accelerator(config.run)
        ways = {"affect": _ours(config, accelerator)}
        if args.plain:
            ways["plain"] = _plain(config, accelerator)
        live = _live(config, accelerator, args.live_from, Path(folder)) if args.live_from else None
        for step in ways.values():
            _steps(step, WARM_UP)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        turns = [{way: _steps(step, BLOCK) for way, step in ways.items()} for _ in range(args.steps // BLOCK)]
        parameters = language_parameters(config)
        figures = {way: _figures(np.concatenate([turn[way] for turn in turns]), parameters) for way in ways}
        if live:
            figures["live"] = _figures(_steps(live, 1 + LIVE_STEPS)[1:], parameters)
        rates = {way: found["samples_per_second"] for way, found in figures.items()}
        most = limits(accelerator.device)
        if reachable := most.get("matmul_tflops_per_second"):
            most["utilisation_of_matmul"] = round(figures["affect"]["model_tflops_per_second"] / reachable, 3)
        return {
            "preset": args.preset,
            "batch_size": args.batch_size,
            "steps": args.steps,
            "device": device_name(accelerator.device),
            "threads": args.threads,
            "language_model_parameters": parameters,
            **figures,
            **{f"affect_over_{way}": round(rates["affect"] / rates[way], 3) for way in list(rates)[1:]},
            **most,
        }


def _steps(step: Step, count: int) -> np.ndarray:
    """Train; return a row a step: seconds, seconds waited, samples, tokens, cells, loss."""
    rows = []
    for _ in range(count):
        seconds, waited, size, loss = step()
        rows.append((seconds, waited, size.samples, size.tokens, size.cells, loss))
    return np.array(rows)


def _figures(rows: np.ndarray, parameters: int) -> dict[str, float]:
    """Return rates and shares; a frozen parameter costs 4 FLOPs a token (forward, and back to the input)."""
    total, waited, samples, tokens, cells, _ = rows.sum(axis=0).tolist()
    return {
        "samples_per_second": round(samples / total, 3),
        "tokens_per_second": round(tokens / total, 1),
        "step_ms": round(1000 * float(np.median(rows[:, 0])), 2),
        "padding_share": round(1 - tokens / cells, 4),
        "data_wait_share": round(waited / total, 4),
        "model_tflops_per_second": round(4 * parameters * tokens / total / 1e12, 4),
        "mean_loss": round(float(rows[:, -1].mean()), 4),
    }


def _task(config: Config, accelerator: Accelerator) -> AffectGPTTask:
    return open_task(config, fill_sentences, live_stores, accelerator, Path(), None)


def _ours(config: Config, accelerator: Accelerator) -> Step:
    """The engine's trainer, one step at a time."""
    trainer = start_trainer(_task(config, accelerator), accelerator)

    def step() -> tuple[float, float, Size, float]:
        waited = trainer.waited
        report = trainer.next_step(config.run.init_lr)
        return report.seconds, trainer.waited - waited, report.size, report.loss

    return step


def _plain(config: Config, accelerator: Accelerator) -> Step:
    """The usual loop: batches as they come, logits of every position, the library's own loss."""
    config = config.model_copy(deep=True)
    config.run.bucket_by_length = False
    task = _task(config, accelerator)
    model = task.model.to(accelerator.device).train()
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=config.run.init_lr)
    batches = task.batches(0, config.run.total_steps, accelerator)

    def step() -> tuple[float, float, Size, float]:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        seen = batch.to(accelerator.device)
        with accelerator.autocast():
            loss = model.llm(
                inputs_embeds=model.embed(seen), attention_mask=seen.attention_mask, labels=seen.labels
            ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.item()
        return time.perf_counter() - start, waited, task.size(batch), mean

    return step


def _live(config: Config, accelerator: Accelerator, videos: Path, root: Path) -> Step:
    """The same loop, with frames, faces and sound encoded when a clip is asked for."""
    use_random_weights(["CLIP_VIT_LARGE", "HUBERT_LARGE"], root / "weights")
    config = config.model_copy(deep=True)
    section = config.datasets["random"]
    names = [clip.name for clip in read_clips("random", section)]
    link_clips(videos, root / "video", dict(zip(names, cycle(find_videos(videos)), strict=False)))
    config.model.skip_encoders = False
    config.run.num_workers = 0  # encoder and model share the processor
    section.use_preextracted_features, section.video_root = False, str(root / "video")
    return _ours(config, accelerator)
