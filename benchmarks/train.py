"""Training steps per second on random clips and weights of a chosen size, beside a plain loop on the same data."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from affect.cli.live import live_stores
from affect.core.layouts import LAYOUTS
from affect.core.schema import Batch
from affect.data.config import Config
from affect.data.dataset import Features, TrainingSamples, open_datasets, query_tokens
from affect.data.prompts import load_prompts
from affect.engine.launch import start_accelerator
from affect.engine.step import training_step
from affect.engine.trainer import start_trainer
from affect.models.affectgpt import AffectGPT, build_affectgpt
from affect.models.llm import decoder
from affect.tasks.affectgpt import AffectGPTTask
from benchmarks.extract import use_random_weights
from benchmarks.world import (
    PRESETS,
    clip_names,
    language_parameters,
    link_videos,
    make_world,
    matmul_tflops,
    peak_memory,
)

WARM_UP = 3
BLOCK = 5
"""Steps that a way is timed for before the other takes its turn."""
LIVE_STEPS = 3
"""Steps with encoders of the true size, which take long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of this benchmark."""
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny")
    add("--random-init", "--random_init", action="store_true", help="the only kind of weights so far; said for clarity")
    add("--batch_size", type=int, default=1)
    add("--steps", type=int, default=30)
    add("--clips", type=int, default=256)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--gradient_checkpointing", action="store_true")
    add("--compile", action="store_true")
    add("--plain", action="store_true", help="also time a loop that computes all logits and batches clips as they come")
    add(
        "--live_from",
        type=Path,
        help="videos: also train with CLIP and HuBERT of the true size reading them on the fly",
    )
    add("--threads", type=int, default=2, help="processor threads")


@dataclass
class Way:
    """One way to train, and what was measured of it."""

    step: Callable[[Batch], float]
    batches: Iterator[Batch]
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    cells: int = 0
    losses: list[float] = field(default_factory=list)

    def run(self, steps: int, timed: bool) -> None:
        """Train some steps and, if asked, count them."""
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(self.batches)
            waited = time.perf_counter() - start
            loss = self.step(batch)
            if timed:
                self.seconds.append(time.perf_counter() - start)
                self.waits.append(waited)
                self.samples += len(batch.names)
                self.tokens += int(batch.attention_mask.sum())
                self.cells += batch.attention_mask.numel()
                self.losses.append(loss)

    def figures(self, parameters: int) -> dict[str, Any]:
        """Return rates and shares; a frozen parameter costs 4 FLOPs a token (forward, and back to the input)."""
        total = sum(self.seconds)
        return {
            "samples_per_second": round(self.samples / total, 3),
            "tokens_per_second": round(self.tokens / total, 1),
            "step_ms": round(1000 * float(np.median(self.seconds)), 2),
            "padding_share": round(1 - self.tokens / self.cells, 4),
            "data_wait_share": round(sum(self.waits) / total, 4),
            "model_tflops_per_second": round(4 * parameters * self.tokens / total / 1e12, 4),
            "mean_loss": round(float(np.mean(self.losses)), 4),
        }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps on a random data set; return the figures."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = make_world(
            PRESETS[args.preset],
            Path(folder),
            args.clips,
            args.batch_size,
            args.device,
            bucket_by_length=args.batch_size > 1,
            gradient_checkpointing=args.gradient_checkpointing,
            compile=args.compile,
            max_epoch=1,
            iters_per_epoch=WARM_UP + args.steps,
        )
        accelerator = start_accelerator(config.run)
        ways = {"affect": _ours(config, accelerator)}
        if args.plain:
            ways["plain"] = _plain(config, accelerator)
        live = _live(config, accelerator, args.live_from, Path(folder)) if args.live_from else None
        for way in ways.values():
            way.run(WARM_UP, timed=False)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(args.steps // BLOCK):
            for way in ways.values():
                way.run(BLOCK, timed=True)
        if live:
            live.run(1, timed=False)
            live.run(LIVE_STEPS, timed=True)
            ways["live"] = live
        parameters = language_parameters(config)
        figures = {name: way.figures(parameters) for name, way in ways.items()}
        return {
            "benchmark": "train",
            "preset": args.preset,
            "batch_size": args.batch_size,
            "steps": args.steps,
            "device": _device_name(accelerator.device),
            "threads": args.threads,
            "language_model_parameters": parameters,
            **figures,
            **_ratio(figures),
            **_memory(accelerator.device, parameters, figures["affect"]),
        }


def _ours(config: Config, accelerator: Accelerator, stores: Mapping[str, Features] | None = None) -> Way:
    """The engine's trainer, one step at a time."""
    trainer = start_trainer(AffectGPTTask(config, _model(config), _samples(config, stores)), accelerator)

    def step(batch: Batch) -> float:
        return training_step(trainer.task, trainer.wrapped, trainer.optimizer, [batch], accelerator).loss

    return Way(step, trainer.batches)


def _plain(config: Config, accelerator: Accelerator) -> Way:
    """The usual loop: batches as they come, logits of every position, the library's own loss."""
    config = config.model_copy(deep=True)
    config.run.bucket_by_length = False
    model, samples = _model(config), _samples(config)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=config.run.init_lr)
    batches = AffectGPTTask(config, model, samples).batches(0, config.run.total_steps, accelerator)
    model.to(accelerator.device).train()

    def step(batch: Batch) -> float:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            output = model.llm(
                inputs_embeds=model.embed(batch), attention_mask=batch.attention_mask, labels=batch.labels
            )
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return output.loss.item()

    return Way(step, batches)


def _model(config: Config) -> AffectGPT:
    torch.manual_seed(0)
    layouts = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    dtype = torch.bfloat16 if config.run.device.startswith("cuda") else torch.float32
    model = build_affectgpt(config.model, layouts, dtype, config.run.gradient_checkpointing)
    if config.run.compile:
        decoder(model.llm).compile(dynamic=True)
    return model


def _live(config: Config, accelerator: Accelerator, videos: Path, root: Path) -> Way:
    """The same loop, with frames, faces and sound encoded when a clip is asked for."""
    use_random_weights(["CLIP_VIT_LARGE", "HUBERT_LARGE"], root / "weights")
    link_videos(videos, root / "video", clip_names(config))
    config = config.model_copy(deep=True)
    config.model.skip_encoders = False
    config.run.num_workers = 0  # encoder and model share the processor
    section = config.datasets["random"]
    section.use_preextracted_features, section.video_root = False, str(root / "video")
    return _ours(config, accelerator, live_stores(config, str(accelerator.device)))


def _samples(config: Config, stores: Mapping[str, Features] | None = None) -> TrainingSamples:
    prompts = load_prompts(config.model.prompt_file)
    datasets = open_datasets(config, "train", stores)
    return TrainingSamples(datasets, prompts, query_tokens(config.model), config.run.seed)


def _ratio(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    own = figures["affect"]["samples_per_second"]
    others = {name: each["samples_per_second"] for name, each in figures.items() if name != "affect"}
    return {f"affect_over_{name}": round(own / rate, 3) for name, rate in others.items()}


def _memory(device: torch.device, parameters: int, figures: dict[str, Any]) -> dict[str, Any]:
    """Return peak memory and, on a GPU, the share of what its matrix products alone reach."""
    peak = peak_memory(device)  # before the matrix products take theirs
    if device.type != "cuda":
        return peak
    reachable = matmul_tflops(device)
    return {
        **peak,
        "matmul_tflops_per_second": round(reachable, 1),
        "utilisation_of_matmul": round(figures["model_tflops_per_second"] / reachable, 3),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
