"""How fast the expression networks of the image track are, what they compute and what memory they take.

    python tools/benchmark.py fer --models poster_v2 compact --batch_sizes 1 8 32 --ways eager folded compiled
    python tools/benchmark.py fer --models ir50_vit:baseline:stage4:qk_norm timm:resnet18 --train

A model is an architecture and, for ir50_vit, a block, a stage and qk_norm, in any order; for timm a backbone. Weights
are random. The ways of a model take turns, step by step, so that other work of the machine falls on all alike, and so
do the two models of each of --pairs; figures are medians.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from affect.core.device import keep_freed_memory, pick_device
from affect.expressions.config import Arch, Block, ImageModelConfig
from affect.expressions.models import ExpressionModel, build_model, for_prediction
from benchmarks.counting import count_macs, count_parameters
from benchmarks.world import device_name

WAYS = ("eager", "channels_last", "folded", "compiled", "compiled_contiguous")
"""Ways to run a network; the first is what logits are compared with, folded how networks predict."""
OPTIONS: dict[str, dict[str, Any]] = {
    **{block: {"block": block} for block in get_args(Block)},
    **{stage: {"stage": stage} for stage in ("stage3", "stage4")},
    "qk_norm": {"qk_norm": True},
}
"""Option of ir50_vit -> settings of the model."""
MODELS = ("poster_v2", "ir50_vit:cls_only:stage3", "ir50_vit:baseline:stage3", "compact")
PAIRS = (
    "ir50_vit:cls_only:stage3/ir50_vit:baseline:stage3",
    "ir50_vit:cls_only:stage3/ir50_vit:baseline:stage3:qk_norm",
    "ir50_vit:cls_only:stage4/ir50_vit:baseline:stage4",
)
WARM_UP = 2
LEAST_STEPS = 3
COMPARED = 4
"""Images whose logits are compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of this benchmark."""
    add = parser.add_argument
    add("--models", nargs="*", default=list(MODELS), help=f"default: {' '.join(MODELS)}")
    add("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    add("--ways", nargs="+", choices=WAYS, help="default: eager channels_last compiled, and folded for inference")
    add("--train", action="store_true", help="time training steps (forward, backward, AdamW) instead of inference")
    add("--pairs", nargs="*", default=list(PAIRS), metavar="A/B", help="models whose images a second are divided")
    add("--pair_batch_size", type=int, default=32)
    add("--seconds", type=float, default=3.0, help="to spend on a way at a batch size, after warming up")
    add("--width", type=float, default=1.0, help="share of the published channels, for trials")
    add("--img_size", type=int, help="pixels a side; default: what each model is meant for")
    add("--classes", type=int, default=7)
    add("--amp", action="store_true", help="bfloat16 where autocast allows it")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    add("--threads", type=int, default=torch.get_num_threads(), help="processor threads")


@dataclass
class Runner:
    """A network that is run one way, and how long its steps took."""

    model: ExpressionModel
    images: Tensor
    train: bool
    amp: bool
    optimizer: torch.optim.Optimizer | None = None
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.train(self.train)
        if self.train:
            self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        for _ in range(WARM_UP):
            self.step()

    def step(self) -> None:
        """Run one batch and wait until it is done."""
        amp = torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.amp)
        with amp, torch.inference_mode(not self.train):
            logits = self.model(self.images)
        if self.optimizer is not None:
            labels = torch.arange(len(self.images), device=self.images.device) % 2
            functional.cross_entropy(logits.float(), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)

    def timed_step(self) -> None:
        """Run one batch and note its seconds."""
        start = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - start)

    def rates(self) -> dict[str, float]:
        """Return images a second and milliseconds a step by the median of steps."""
        middle = float(np.median(self.seconds))
        return {"images_per_second": round(len(self.images) / middle, 2), "step_ms": round(1000 * middle, 3)}


def take_turns(runners: Sequence[Runner], seconds: float) -> None:
    """Time runners step by step, as long as asked for together and LEAST_STEPS at least."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(runners[0].seconds) < LEAST_STEPS:
        for runner in runners:
            runner.timed_step()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every model and pair; return the figures and show them as tables."""
    if min(*args.batch_sizes, args.pair_batch_size) < 1:
        raise ValueError("--batch_sizes and --pair_batch_size: expected numbers above 0")
    torch.set_num_threads(args.threads)
    args.device = pick_device(args.device, "--device")
    if args.device.type == "cpu":
        keep_freed_memory()
    args.ways = args.ways or ["eager", "channels_last", *([] if args.train else ["folded"]), "compiled"]
    if args.train and "folded" in args.ways:
        raise ValueError("--ways folded: networks are folded for inference only; leave it or --train out")
    configs = {name: parse_model(name, args) for name in args.models}
    pairs = {pair: [parse_model(part, args) for part in pair.split("/")] for pair in args.pairs}
    if wrong := [pair for pair, two in pairs.items() if len(two) != 2]:
        raise ValueError(f"--pairs {wrong[0]}: expected two models with a / between them")
    models = [_measure_model(name, config, args) for name, config in configs.items()]
    shown = track(pairs.items(), "pairs", console=Console(stderr=True), disable=not pairs)
    figures = {
        "mode": "train" if args.train else "inference",
        "device": device_name(args.device),
        "torch": torch.__version__,
        "amp": args.amp,
        "models": models,
        "pairs": [_measure_pair(pair, two, args) for pair, two in shown],
    }
    _show(figures)
    return figures


def parse_model(text: str, args: argparse.Namespace) -> ImageModelConfig:
    """Return the configuration of `arch[:option…]` (raises ValueError for what is none)."""
    arch, _, rest = text.partition(":")
    settings: dict[str, Any] = {"arch": arch, "width": 1.0 if arch == "timm" else args.width, "img_size": args.img_size}
    options = rest.split(":") if rest and arch != "timm" else []
    if arch == "timm" and rest:
        settings["backbone"] = rest
    if arch not in get_args(Arch) or (options and not (arch == "ir50_vit" and OPTIONS.keys() >= set(options))):
        raise ValueError(
            f"model {text!r}: expected poster_v2, compact, timm:<backbone>, or ir50_vit with a block "
            f"({', '.join(get_args(Block))}), a stage (stage3, stage4) and qk_norm, joined by ':'"
        )
    for option in options:
        settings |= OPTIONS[option]
    return ImageModelConfig(**settings)


def _build(config: ImageModelConfig, way: str, args: argparse.Namespace) -> ExpressionModel:
    """Return a network with the same random weights each time, set up for a way."""
    torch.manual_seed(0)
    compiled, channels_last = way.startswith("compiled"), way not in ("eager", "compiled_contiguous")
    settings = {"channels_last": channels_last, "compile": compiled}
    model = build_model(config.model_copy(update=settings), args.classes).to(args.device).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # scales that begin at 0 would keep most of a new network from its logits
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator).to(args.device))
    if way == "folded":
        model = for_prediction(model, str(args.device))
    if compiled:
        model.compile(dynamic=False)
    return model


def _images(config: ImageModelConfig, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, 1 if config.gray else 3, config.input_size, config.input_size)
    return torch.randn(shape, generator=generator).to(device)


def _measure_model(name: str, config: ImageModelConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a model computes, and speed and memory of each way at each batch size."""
    model = _build(config, "eager", args)
    one = _images(config, 1, args.device)
    reference = _logits(model, config, args.device)
    figures = {
        "model": name,
        "img_size": config.input_size,
        "macs": count_macs(model, one),
        "macs_with_norms": count_macs(model, one, "with_norms"),
        "parameters": count_parameters(model).total,
        "largest_logit": round(float(reference.abs().max()), 3),
        "rows": [],
    }
    for size in track(args.batch_sizes, f"{name}: batch sizes", console=Console(stderr=True)):
        figures["rows"] += _measure_batch(config, size, args, reference)
        torch.compiler.reset()
    return figures


def _measure_batch(
    config: ImageModelConfig, size: int, args: argparse.Namespace, reference: Tensor
) -> list[dict[str, Any]]:
    """Return figures of each way at one batch size, timed in turns."""
    runners, others = {}, {}
    for way in args.ways:
        model = _build(config, way, args)
        off = float((_logits(model, config, args.device) - reference).abs().max())
        runners[way] = Runner(model, _images(config, size, args.device), args.train, args.amp)
        others[way] = {"peak_mb": peak_megabytes(runners[way].step, args.device, model), "logits_off": off}
    take_turns(list(runners.values()), args.seconds * len(runners))
    return [
        {"way": way, "batch_size": size, **runner.rates(), "steps": len(runner.seconds), **others[way]}
        for way, runner in runners.items()
    ]


def _measure_pair(pair: str, configs: Sequence[ImageModelConfig], args: argparse.Namespace) -> dict[str, Any]:
    """Return how many times more images a second the first of two models takes, as it trains or predicts, in turns."""
    way = "channels_last" if args.train else "folded"
    runners = []
    for config in configs:
        images = _images(config, args.pair_batch_size, args.device)
        runners.append(Runner(_build(config, way, args), images, args.train, args.amp))
    take_turns(runners, 4 * args.seconds)
    first, second = (np.array(runner.seconds) for runner in runners)
    return {
        "pair": pair,
        "batch_size": args.pair_batch_size,
        "way": way,
        "images_per_second": [runner.rates()["images_per_second"] for runner in runners],
        "ratio": round(float(np.median(second) / np.median(first)), 3),
        "ratio_of_single_turns": [round(float(end(second / first)), 3) for end in (np.min, np.max)],
        "turns": len(first),
    }


@torch.inference_mode()
def _logits(model: ExpressionModel, config: ImageModelConfig, device: torch.device) -> Tensor:
    return model(_images(config, COMPARED, device)).float().cpu()


def peak_megabytes(step: Callable[[], None], device: torch.device, model: ExpressionModel) -> float | None:
    """Return the most memory of a step in MiB: on a GPU what torch held, else weights and growth of the process.

    None where the system does not tell the growth (only Linux does).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed would be used again without growth
    reset.write_text("5")  # the highest resident size counts from now on
    before = _kilobytes(status, "VmRSS")
    step()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return round((_kilobytes(status, "VmHWM") - before) / 2**10 + weights / 2**20, 1)


def _kilobytes(status: Path, name: str) -> int:
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{name}:")))


def _show(figures: dict[str, Any]) -> None:
    console = Console(stderr=True)
    for model in figures["models"]:
        counts = f"{model['macs'] / 1e9:.3f} G multiply-accumulates, {model['parameters'] / 1e6:.3f} M parameters"
        table = Table(*model["rows"][0], title=f"{model['model']}, {figures['mode']}: {counts}")
        for row in model["rows"]:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    for pair in figures["pairs"]:
        low, high = pair["ratio_of_single_turns"]
        console.print(f"{pair['pair']} at batch {pair['batch_size']}: {pair['ratio']} ({low} to {high} by turn)")
