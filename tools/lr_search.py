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
import itertools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from affect.cli import INTERRUPTED, add_offline
from affect.core.config import apply_option, flat
from affect.core.files import atomic_write, write_csv, write_json
from affect.core.plots import draw_lines
from affect.core.schema import check_name
from affect.engine.stop import EXIT_CODE
from affect.expressions.config import FerConfig, load_fer_config

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
    add_offline(parser)
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
    losses = range_test(config, rates := np.geomspace(args.low, args.high, args.steps), out)
    found = write_range(rates[: len(losses)], losses, out)
    told = f"suggested rate {found:.2e}" if found else "the loss never fell: no rate suggested"
    print(f"{told} ({len(losses)} steps; curve in {out / 'range.png'})")
    return 0


def range_test(config: FerConfig, rates: Sequence[float], folder: Path) -> np.ndarray:
    """Train a network at growing rates, one step each, and throw it away; return the losses as `sweep` does.

    failures.csv goes to `folder`. Moving average, schedule and the number of epochs play no part. Raises
    ValueError as training does, and where the loss explodes at once.
    """
    from affect.engine.launch import start_accelerator  # --help opens at once, here and below
    from affect.engine.trainer import start_trainer
    from affect.tasks.expressions import open_task

    config = config.model_copy(update={"run": config.run.model_copy(update={"ema": 0.0})})
    accelerator = start_accelerator(config.run)
    trainer = start_trainer(open_task(config, accelerator, folder), accelerator, last=len(rates))
    with closing(trainer.batches):
        return sweep(lambda rate: trainer.next_step(rate).loss, rates)


def sweep(step: Callable[[float], float], rates: Sequence[float]) -> np.ndarray:
    """Call `step` (rate -> loss) with growing rates until the loss explodes; return the losses before that, nats.

    A step may raise FloatingPointError, too. Raises ValueError where the loss explodes before LEAST_STEPS.
    """
    from affect.expressions.image_set import tracked

    losses: list[float] = []
    lowest = math.inf
    for rate in tracked(rates, "range test"):
        try:
            losses.append(step(float(rate)))
        except FloatingPointError:
            break
        mean = float(np.mean(losses[-RECENT:]))
        lowest = min(lowest, mean)
        if not mean <= EXPLODED * lowest < math.inf:
            losses.pop()
            break
    if len(losses) < LEAST_STEPS:
        raise ValueError(
            f"the loss exploded after {len(losses)} steps, at a rate of {rates[len(losses)]:.1e}; expected at least "
            f"{LEAST_STEPS}, give a smaller --low"
        )
    return np.array(losses)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Return losses [N] smoothed over neighbours on both sides."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(losses, max(1.0, WIDTH * len(losses)), mode="nearest")


def suggestion(rates: Sequence[float], losses: np.ndarray) -> float | None:
    """Return the rate [N] before the minimum at which the smoothed loss falls most with the log of the rate.

    None where the loss never fell.
    """
    smooth = smoothed(losses)
    lowest = int(np.argmin(smooth))
    if lowest < 2:
        return None
    slopes = np.gradient(smooth[: lowest + 1], np.log(rates[: lowest + 1]))
    best = int(np.argmin(slopes))
    return float(rates[best]) if slopes[best] < 0 else None


def write_range(rates: np.ndarray, losses: np.ndarray, folder: Path) -> float | None:
    """Write range.png, range.csv and range.json of a range test; return the suggested rate, if any."""
    found, smooth = suggestion(rates, losses), smoothed(losses)
    rows = zip(rates.tolist(), losses.tolist(), smooth.tolist(), strict=True)
    write_csv(folder / "range.csv", ["rate", "loss", "smoothed"], rows)
    write_json(folder / "range.json", {"suggestion": found, "steps": len(rates), "lowest_loss": float(smooth.min())})
    low, high = smooth.min(), smooth[: smooth.argmin() + 1].max()  # an explosion would flatten all before it
    draw_lines(
        folder / "range.png",
        {"loss": (rates, losses), "smoothed": (rates, smooth)},
        {"loss": {"color": "tab:gray", "alpha": 0.4, "linewidth": 0.8}, "smoothed": {"color": "tab:red"}},
        at={f"suggested {found:.1e}": found} if found else None,
        ylim=(low - 0.5 * (high - low) - 0.05, high + 2 * (high - low) + 0.05),
        title="Range test",
        xlabel="learning rate",
        ylabel="loss",
        xscale="log",
    )
    return found


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return section.key -> values of `key=a,b` texts (raises ValueError for other texts)."""
    content: dict[str, Any] = {}
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        found = [value for value in values.split(",") if value]
        if not found:
            raise ValueError(f"--grid {text}: expected KEY=A,B, a setting and its values")
        apply_option(FerConfig, content, f"{name}=")
        keys = flat(content)
        if len(keys) == len(grid):
            raise ValueError(f"--grid {text}: {next(reversed(keys))} is given twice; put all values into one")
        grid[next(key for key in keys if key not in grid)] = list(dict.fromkeys(found))
    return grid


def search_grid(cfg_path: str, options: Sequence[str], grid: dict[str, list[str]], epochs: int, out: Path) -> int:
    """Train every combination that is not done, write and show the table of scores; return the exit code.

    A combination whose loss is not finite has no scores, and the others go on. Ends early, with train.py's
    code, where SIGTERM stops a training; the same command goes on from there.
    """
    from affect.tasks.expressions import watched

    runs = []
    for values in (dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())):
        folder = out / f"{epochs}_epochs" / folder_name(values)
        settings = [*options, *(f"{key}={value}" for key, value in values.items())]
        settings += [f"run.max_epoch={epochs}", f"run.output_dir={json.dumps(str(folder))}"]
        # all are read before the first is trained, so that a wrong value is told at once
        runs.append((values, folder, load_fer_config(cfg_path, settings)))
    rows = []
    for number, (values, folder, config) in enumerate(runs, start=1):
        logger.info("%d of %d: %s", number, len(runs), folder.name)
        scores = scores_of(config, cfg_path, folder)
        if scores is None:
            return EXIT_CODE
        rows.append(values | scores)
    write_grid(rows, list(grid), watched(runs[0][2]).score, out)
    return 0


def scores_of(config: FerConfig, cfg_path: str, folder: Path) -> dict[str, Any] | None:
    """Train into a folder unless that is done or failed before; return the best epoch and its validation scores.

    Nothing where the loss is not finite, None where SIGTERM ended the training early.
    """
    from affect.engine.checkpoint import find_checkpoint, read_state
    from affect.tasks.expressions import train_expressions

    try:
        if (folder / NOT_FINITE).is_file():
            return {}
        if not train_expressions(config, cfg_path):
            return None
    except FloatingPointError as error:
        with atomic_write(folder / NOT_FINITE) as handle:
            handle.write(str(error).encode())
        return {}
    state = read_state(find_checkpoint(folder))
    best = next((entry for entry in state.history if entry["epoch"] == state.best_epoch), {})
    return {key: value for key, value in best.items() if key == "epoch" or key.startswith("val_")}


def folder_name(values: dict[str, str]) -> str:
    """Return a name for a combination of settings, e.g. `lr_1e-4-depth_8` for run.lr=1e-4 and model.depth=8."""
    name = "-".join(f"{key.rpartition('.')[2]}_{value}" for key, value in values.items())
    return check_name(re.sub(r"[^\w.-]+", "_", name), "--grid: name of a combination")


def write_grid(rows: list[dict[str, Any]], keys: list[str], score: str, out: Path) -> None:
    """Write grid.csv, grid.json and, where a setting has numbers, grid.png; show the table, highest score first."""
    rows = sorted(rows, key=lambda row: -row.get(score, -math.inf))
    header = list(dict.fromkeys([*keys, score, *(key for row in rows for key in row)]))
    write_csv(out / "grid.csv", header, [[row.get(key, "") for key in header] for row in rows])
    write_json(out / "grid.json", rows)
    shown = [*keys, score, "val_loss", "epoch"]
    names = (key.rpartition(".")[2].removeprefix("val_") for key in shown)
    table = Table(*names, title="Validation after the best epoch of each training")
    for row in rows:
        cells = (row.get(key, "not finite") for key in shown)
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)
    if numeric := [key for key in keys if all(_number(row[key]) is not None for row in rows)]:
        _draw_grid(rows, keys, numeric[0], score, out / "grid.png")
    print(f"table and picture are in {out}")


def _draw_grid(rows: list[dict[str, Any]], keys: list[str], key: str, score: str, path: Path) -> None:
    """Draw a score over a setting that has numbers, a line for each combination of the others."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = ", ".join(f"{other.rpartition('.')[2]} {row[other]}" for other in keys if other != key)
        points.setdefault(label, []).append((_number(row[key]), row.get(score, math.nan)))
    lines = {label: tuple(zip(*sorted(found), strict=True)) for label, found in sorted(points.items())}
    values = [x for found in points.values() for x, _ in found]
    wide = min(values) > 0 and max(values) >= 10 * min(values)
    about = {"xlabel": key.rpartition(".")[2], "ylabel": score, "xscale": "log" if wide else "linear"}
    about["title"] = "Validation after the best epoch"
    draw_lines(path, lines, {label: {"marker": "o"} for label in lines}, **about)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
