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
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

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

WAYS = {
    "eager": {"channels_last": False, "compile": False},
    "channels_last": {"channels_last": True, "compile": False},
    "folded": {"channels_last": True, "compile": False},
    "compiled": {"channels_last": True, "compile": True},
    "compiled_contiguous": {"channels_last": False, "compile": True},
}
"""Way to run a network -> settings of it; the first is what logits are compared with, folded how networks predict."""
MODELS = ("poster_v2", "ir50_vit:cls_only:stage3", "ir50_vit:baseline:stage3", "compact")
PAIRS = (
    "ir50_vit:cls_only:stage3/ir50_vit:baseline:stage3",
    "ir50_vit:cls_only:stage3/ir50_vit:baseline:stage3:qk_norm",
    "ir50_vit:cls_only:stage4/ir50_vit:baseline:stage4",
)
WARM_UP = 2
LEAST_STEPS = 3
WIDTH = 120
"""Columns of the table, which is too wide for a terminal's usual 80."""
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

    def step(self) -> None:
        """Run one batch and wait until it is done."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.amp):
            if self.optimizer is None:
                with torch.inference_mode():
                    self.model(self.images)
            else:
                labels = torch.arange(len(self.images), device=self.images.device) % 2
                loss = functional.cross_entropy(self.model(self.images).float(), labels)
        if self.optimizer is not None:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)

    def timed_step(self) -> None:
        """Run one batch and note its seconds."""
        start = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - start)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every model and pair; return the figures and show them as tables."""
    if min(*args.batch_sizes, args.pair_batch_size) < 1:
        raise ValueError("--batch_sizes and --pair_batch_size: expected numbers above 0")
    torch.set_num_threads(args.threads)
    device = pick_device(args.device, "--device")
    if device.type == "cpu":
        keep_freed_memory()
    args.ways = args.ways or ["eager", "channels_last", *([] if args.train else ["folded"]), "compiled"]
    if args.train and "folded" in args.ways:
        raise ValueError("--ways folded: networks are folded for inference only; leave it or --train out")
    configs = {name: parse_model(name, args) for name in args.models}
    pairs = {pair: _parse_pair(pair, args) for pair in args.pairs}
    models = [_measure_model(name, config, args, device) for name, config in configs.items()]
    ratios = [
        _measure_pair(pair, pairs[pair], args, device)
        for pair in track(args.pairs, "pairs", console=Console(stderr=True), disable=not pairs)
    ]
    figures = {
        "benchmark": "fer",
        "mode": "train" if args.train else "inference",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {args.threads} threads",
        "torch": torch.__version__,
        "amp": args.amp,
        "models": models,
        "pairs": ratios,
    }
    _show(figures)
    return figures


def parse_model(text: str, args: argparse.Namespace) -> ImageModelConfig:
    """Return the configuration of `arch[:option…]` (raises ValueError for what is none)."""
    arch, _, rest = text.partition(":")
    settings: dict[str, Any] = {"arch": arch, "width": 1.0 if arch == "timm" else args.width, "img_size": args.img_size}
    if arch == "timm" and rest:
        return ImageModelConfig(**settings, backbone=rest)
    for option in rest.split(":") if rest else ():
        if arch == "ir50_vit" and option in get_args(Block):
            settings["block"] = option
        elif arch == "ir50_vit" and option in ("stage3", "stage4"):
            settings["stage"] = option
        elif arch == "ir50_vit" and option == "qk_norm":
            settings["qk_norm"] = True
        else:
            arch = ""
    if arch not in get_args(Arch):
        raise ValueError(
            f"model {text!r}: expected poster_v2, compact, timm:<backbone>, or ir50_vit with a block "
            f"({', '.join(get_args(Block))}), a stage (stage3, stage4) and qk_norm, joined by ':'"
        )
    return ImageModelConfig(**settings)


def _parse_pair(text: str, args: argparse.Namespace) -> list[ImageModelConfig]:
    parts = text.split("/")
    if len(parts) != 2:
        raise ValueError(f"--pairs {text}: expected two models with a / between them")
    return [parse_model(part, args) for part in parts]


def _build(config: ImageModelConfig, way: str, args: argparse.Namespace, device: torch.device) -> ExpressionModel:
    """Return a network with the same random weights each time, set up for a way."""
    torch.manual_seed(0)
    settings = WAYS[way]
    model = build_model(config.model_copy(update=settings), args.classes).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # scales that begin at 0 would keep most of a new network from its logits
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator).to(device))
    if way == "folded":
        model = for_prediction(model, str(device))
    if settings["compile"]:
        model.compile(dynamic=False)
    return model


def _images(config: ImageModelConfig, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, 1 if config.gray else 3, config.input_size, config.input_size)
    return torch.randn(shape, generator=generator).to(device)


def _measure_model(
    name: str, config: ImageModelConfig, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Return what a model computes, and speed and memory of each way at each batch size."""
    model = _build(config, "eager", args, device)
    one = _images(config, 1, device)
    counts = {
        "macs": count_macs(model, one),
        "macs_with_norms": count_macs(model, one, "with_norms"),
        "parameters": count_parameters(model).total,
    }
    reference = _logits(model, config, device)
    rows = []
    for size in track(args.batch_sizes, f"{name}: batch sizes", console=Console(stderr=True)):
        rows += _measure_batch(config, size, args, device, reference)
        torch.compiler.reset()
    largest = round(float(reference.abs().max()), 3)
    return {"model": name, "img_size": config.input_size, **counts, "largest_logit": largest, "rows": rows}


def _measure_batch(
    config: ImageModelConfig, size: int, args: argparse.Namespace, device: torch.device, reference: Tensor
) -> list[dict[str, Any]]:
    """Return figures of each way at one batch size, timed in turns."""
    runners, memory, differences = {}, {}, {}
    for way in args.ways:
        model = _build(config, way, args, device)
        differences[way] = float((_logits(model, config, device) - reference).abs().max())
        runners[way] = Runner(model, _images(config, size, device), args.train, args.amp)
        for _ in range(WARM_UP):
            runners[way].step()
        memory[way] = peak_megabytes(runners[way].step, device, model)
    start = time.perf_counter()
    while time.perf_counter() - start < args.seconds * len(runners) or len(runners[way].seconds) < LEAST_STEPS:
        for runner in runners.values():
            runner.timed_step()
    return [
        {
            "way": way,
            "batch_size": size,
            **rates(size, runner.seconds),
            "steps": len(runner.seconds),
            "peak_mb": memory[way],
            "logits_off": differences[way],
        }
        for way, runner in runners.items()
    ]


def _measure_pair(
    pair: str, configs: list[ImageModelConfig], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Return how many times more images a second the first of two models takes, as it trains or predicts, in turns."""
    runners = []
    for config in configs:
        way = "channels_last" if args.train else "folded"
        images = _images(config, args.pair_batch_size, device)
        runners.append(Runner(_build(config, way, args, device), images, args.train, args.amp))
    for _ in range(WARM_UP):
        for runner in runners:
            runner.step()
    start = time.perf_counter()
    while time.perf_counter() - start < 4 * args.seconds or len(runners[0].seconds) < LEAST_STEPS:
        for runner in runners:
            runner.timed_step()
    first, second = (runner.seconds for runner in runners)
    single = sorted(b / a for a, b in zip(first, second, strict=True))
    return {
        "pair": pair,
        "batch_size": args.pair_batch_size,
        "way": way,
        "images_per_second": [rates(args.pair_batch_size, seconds)["images_per_second"] for seconds in (first, second)],
        "ratio": round(statistics.median(second) / statistics.median(first), 3),
        "ratio_of_single_turns": [round(single[0], 3), round(single[-1], 3)],
        "turns": len(first),
    }


def rates(batch_size: int, seconds: list[float]) -> dict[str, float]:
    """Return images a second and milliseconds a step by the median of steps."""
    middle = statistics.median(seconds)
    return {"images_per_second": round(batch_size / middle, 2), "step_ms": round(1000 * middle, 3)}


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
    console = Console(stderr=True, width=WIDTH)
    table = Table(
        *("model", "MACs", "parameters", "way", "batch", "images/s", "ms a step", "peak MiB", "logits off"),
        title=f"{figures['mode']}, {figures['device']}",
    )
    for model in figures["models"]:
        told = [model["model"], f"{model['macs'] / 1e9:.3f} G", f"{model['parameters'] / 1e6:.3f} M"]
        for row in model["rows"]:
            speed = [f"{row['images_per_second']:.1f}", f"{row['step_ms']:.2f}"]
            memory = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
            table.add_row(*told, row["way"], str(row["batch_size"]), *speed, memory, f"{row['logits_off']:.1e}")
            told = [""] * 3
        table.add_section()
    if figures["models"]:
        console.print(table)
    for pair in figures["pairs"]:
        console.print(
            f"{pair['pair']} at batch {pair['batch_size']}: {pair['ratio']:.2f} "
            f"({pair['ratio_of_single_turns'][0]:.2f} to {pair['ratio_of_single_turns'][1]:.2f} by turn)"
        )
