"""Find a learning rate for the image track: by a range test, or by short trainings over a grid.

    python tools/lr_search.py --cfg-path train_configs/fer_cls_vit.yaml --options images.data_root=data/rafdb
    python tools/lr_search.py --cfg-path train_configs/fer_cls_vit.yaml --grid lr=1e-5,3e-5,1e-4 depth=4,8 --epochs 5

The range test trains --steps steps at a rate that grows from --low to --high, and suggests the one at which the loss
fell most steeply before its minimum (Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017). The
grid trains every combination anew, the keys as --options takes them; one that is done in --out is not trained again.
Both write a picture, CSV and JSON to --out.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.ndimage import gaussian_filter1d

from affect.core.files import atomic_write
from affect.core.schema import check_name
from affect.engine.launch import start_accelerator
from affect.engine.stop import EXIT_CODE
from affect.expressions.config import FerConfig, full_option, load_fer_config
from affect.expressions.history import best_entry, read_history, watched
from affect.expressions.trainer import build_trainer
from affect.tasks.expressions import open_sets, train_expressions

logger = logging.getLogger("affect")

WIDTH = 0.06
"""Deviation of the bell that the curve is smoothed with, as a share of its length: batches differ much."""
RECENT = 5
"""Steps whose mean loss tells whether it explodes."""
EXPLODED = 4.0
"""The test ends where that mean is this many times the lowest one before."""
LEAST_STEPS = 10
NOT_FINITE = "not_finite.txt"
"""What a training of the grid leaves in its folder whose loss is not finite: it would break at the same step again."""


def main(arguments: list[str] | None = None) -> int:
    """Search as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg-path", required=True, help="YAML configuration of the image track")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that override the file")
    add("--out", type=Path, help="folder for results; default: output/lr_search/<name of the file>")
    add("--low", type=float, default=1e-7, help="first rate of the range test")
    add("--high", type=float, default=1.0, help="last rate of the range test")
    add("--steps", type=int, default=100, help="steps of the range test")
    add("--grid", nargs="+", metavar="KEY=A,B", help="values to train with, of one or more settings")
    add("--epochs", type=int, default=3, help="epochs of each training of the grid")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    out = args.out or Path("output/lr_search") / Path(args.cfg_path).stem
    if args.grid:
        return search_grid(args.cfg_path, args.options, parse_grid(args.grid), args.epochs, out)
    if not 0 < args.low < args.high or args.steps < LEAST_STEPS:
        raise ValueError(
            f"--low {args.low}, --high {args.high}, --steps {args.steps}: expected 0 < low < high and at least "
            f"{LEAST_STEPS} steps"
        )
    config = load_fer_config(args.cfg_path, args.options)
    found = range_test(config, np.geomspace(args.low, args.high, args.steps).tolist(), out)
    found.write(out)
    told = f"suggested rate {found.suggestion:.2e}" if found.suggestion else "the loss never fell: no rate suggested"
    print(f"{told} ({len(found.losses)} steps; curve in {out / 'range.png'})")
    return 0


@dataclass(frozen=True)
class RangeTest:
    """Losses at growing rates; the run may have ended before the last rate."""

    rates: np.ndarray
    """[N]."""
    losses: np.ndarray
    """[N], nats."""

    @property
    def smooth(self) -> np.ndarray:
        """The losses smoothed over neighbours on both sides: [N]."""
        return gaussian_filter1d(self.losses, max(1.0, WIDTH * len(self.losses)), mode="nearest")

    @property
    def suggestion(self) -> float | None:
        """The rate of the steepest descent before the minimum; None where the loss never fell."""
        return steepest(self.rates, self.smooth)

    def write(self, folder: Path) -> None:
        """Write range.png, range.csv and range.json."""
        rows = zip(self.rates.tolist(), self.losses.tolist(), self.smooth.tolist(), strict=True)
        _write_csv(folder / "range.csv", ["rate", "loss", "smoothed"], list(rows))
        found = {"suggestion": self.suggestion, "steps": len(self.rates), "lowest_loss": float(self.smooth.min())}
        _write_json(folder / "range.json", found)
        figure, axes = plt.subplots(figsize=(8, 5))
        axes.plot(self.rates, self.losses, color="tab:gray", alpha=0.4, linewidth=0.8, label="loss")
        axes.plot(self.rates, self.smooth, color="tab:red", label="smoothed")
        if self.suggestion:
            axes.axvline(self.suggestion, color="tab:blue", linestyle="--", label=f"suggested {self.suggestion:.1e}")
        smooth = self.smooth
        low, high = smooth.min(), smooth[: smooth.argmin() + 1].max()  # an explosion would flatten all before it
        limits = (low - 0.5 * (high - low) - 0.05, high + 2 * (high - low) + 0.05)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=limits, title="Range test")
        axes.legend()
        axes.grid(alpha=0.3)
        _save_figure(figure, folder / "range.png")


def steepest(rates: np.ndarray, smooth: np.ndarray) -> float | None:
    """Return the rate before the minimum of a smoothed loss [N] at which it falls most with the log of the rate."""
    lowest = int(np.argmin(smooth))
    if lowest < 2:
        return None
    slopes = np.gradient(smooth[: lowest + 1], np.log(rates[: lowest + 1]))
    best = int(np.argmin(slopes))
    return float(rates[best]) if slopes[best] < 0 else None


def sweep(step: Callable[[float], float], rates: Sequence[float]) -> RangeTest:
    """Call `step` (rate -> loss) with growing rates until the loss explodes; what exploded is left out.

    Raises ValueError where that happens before LEAST_STEPS.
    """
    losses: list[float] = []
    means: list[float] = []
    console = Console(stderr=True)
    for rate in track(rates, "range test", console=console, transient=True, disable=not console.is_terminal):
        loss = step(float(rate))
        if not math.isfinite(loss):
            break
        losses.append(loss)
        means.append(float(np.mean(losses[-RECENT:])))
        if means[-1] > EXPLODED * min(means):
            losses.pop()
            break
    if len(losses) < LEAST_STEPS:
        raise ValueError(
            f"the loss exploded after {len(losses)} steps, at a rate of {rates[len(losses)]:.1e}; expected at least "
            f"{LEAST_STEPS}, give a smaller --low"
        )
    return RangeTest(np.asarray(rates[: len(losses)], float), np.array(losses))


def range_test(config: FerConfig, rates: Sequence[float], folder: Path) -> RangeTest:
    """Train a network at growing rates, one step each, and throw it away; failures.csv goes to `folder`.

    Moving average, schedule and the number of epochs play no part. Raises ValueError as training does, and
    where the loss explodes at once.
    """
    run = config.run.model_copy(update={"ema": 0.0})
    config = config.model_copy(update={"run": run})
    accelerator = start_accelerator(run)
    sets, _ = open_sets(config, folder, accelerator)
    trainer = build_trainer(config, sets["train"], accelerator, last_step=len(rates))

    def step(rate: float) -> float:
        try:
            return trainer.next_step(rate).loss
        except FloatingPointError:
            return math.inf

    return sweep(step, rates)


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return setting -> values of `key=a,b` texts, the keys in full (raises ValueError for other texts)."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        found = [value for value in values.split(",") if value]
        if not found:
            raise ValueError(f"--grid {text}: expected KEY=A,B, a setting and its values")
        key = full_option(f"{key}=").removesuffix("=")
        if key in grid:
            raise ValueError(f"--grid {text}: {key} is given twice; put all values into one")
        grid[key] = list(dict.fromkeys(found))
    return grid


def search_grid(cfg_path: str, options: Sequence[str], grid: dict[str, list[str]], epochs: int, out: Path) -> int:
    """Train every combination that is not done, write and show the table of scores; return the exit code.

    A combination whose loss is not finite has no scores, and the others go on. Ends early, with train.py's
    code, where SIGTERM stops a training; the same command goes on from there.
    """
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs = []
    for values in combinations:  # all are read before the first is trained, so that a wrong value is told at once
        folder = out / f"{epochs}_epochs" / folder_name(values)
        settings = [f"{key}={value}" for key, value in values.items()]
        settings = [*options, *settings, f"run.epochs={epochs}", f"run.output_dir={json.dumps(str(folder))}"]
        load_fer_config(cfg_path, settings)
        runs.append((values, folder, settings))
    rows = []
    for number, (values, folder, settings) in enumerate(runs, start=1):
        logger.info("%d of %d: %s", number, len(runs), folder.name)
        if not train_once(cfg_path, settings, folder):
            return EXIT_CODE
        rows.append(values | scores_of(folder))
    multi_label = load_fer_config(cfg_path, runs[0][2]).multi_label
    write_grid(rows, list(grid), watched(multi_label), out)
    return 0


def train_once(cfg_path: str, settings: Sequence[str], folder: Path) -> bool:
    """Train into a folder unless that is done or failed before; return False where SIGTERM ended it early."""
    if (folder / NOT_FINITE).is_file():
        return True
    try:
        return train_expressions(cfg_path, settings)
    except FloatingPointError as error:
        with atomic_write(folder / NOT_FINITE) as handle:
            handle.write(str(error).encode())
        return True


def scores_of(folder: Path) -> dict[str, Any]:
    """Return the epoch of a training's best network and its validation scores; nothing where the loss broke."""
    best = None
    if not (folder / NOT_FINITE).is_file():
        multi_label = load_fer_config(folder / "config.yaml").multi_label
        best = best_entry(read_history(folder / "history.json"), watched(multi_label))
    return {key: value for key, value in (best or {}).items() if key == "epoch" or key.startswith("val_")}


def folder_name(values: dict[str, str]) -> str:
    """Return a name for a combination of settings, e.g. `lr_1e-4-depth_8` for run.lr=1e-4 and model.depth=8."""
    name = "-".join(f"{key.rpartition('.')[2]}_{value}" for key, value in values.items())
    return check_name(re.sub(r"[^\w.-]+", "_", name), "--grid: name of a combination")


def write_grid(rows: list[dict[str, Any]], keys: list[str], score: str, out: Path) -> None:
    """Write grid.csv, grid.json and, where a setting has numbers, grid.png; show the table, highest score first."""
    rows = sorted(rows, key=lambda row: -row.get(score, -math.inf))
    header = list(dict.fromkeys([*keys, score, *(key for row in rows for key in row)]))
    _write_csv(out / "grid.csv", header, [[row.get(key, "") for key in header] for row in rows])
    _write_json(out / "grid.json", rows)
    shown = [*keys, score, "val_loss", "epoch"]
    names = (key.rpartition(".")[2].removeprefix("val_") for key in shown)
    table = Table(*names, title="Validation after the best epoch of each training")
    for row in rows:
        table.add_row(*(_cell(row.get(key, "not finite")) for key in shown))
    Console().print(table)
    _draw_grid(rows, keys, score, out / "grid.png")
    print(f"table and picture are in {out}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw_grid(rows: list[dict[str, Any]], keys: list[str], score: str, path: Path) -> None:
    """Draw a score over the first setting that has numbers, a line for each combination of the others."""
    numeric = [key for key in keys if all(_number(row[key]) is not None for row in rows)]
    if not numeric:
        return
    key = numeric[0]
    figure, axes = plt.subplots(figsize=(8, 5))
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = ", ".join(f"{other.rpartition('.')[2]} {row[other]}" for other in keys if other != key)
        lines.setdefault(label, []).append((_number(row[key]), row.get(score, math.nan)))
    for label, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label or None)
    if any(lines):
        axes.legend()
    values = [_number(row[key]) for row in rows]
    if min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_xscale("log")
    axes.set(xlabel=key.rpartition(".")[2], ylabel=score, title="Validation after the best epoch")
    axes.grid(alpha=0.3)
    _save_figure(figure, path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _write_csv(path: Path, header: list[str], rows: list[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    with atomic_write(path) as handle:
        handle.write(text.getvalue().encode())


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as handle:
        handle.write(json.dumps(content, indent=1, allow_nan=False).encode())


def _save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
