"""Where figures are drawn and saved: the one module that asks for matplotlib, and only when something is drawn.

Figures are made without pyplot, so nothing is kept between them and no display is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affect.core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NONE = "none"
"""Last column of a confusion matrix: no answer."""
_COLORS = ("tab:blue", "tab:orange", "tab:green")


def new_figure(size: tuple[float, float], rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """Return a figure of `size` inches and its axes, alone or as an array; `settings` as `Figure.subplots` has them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **settings)


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as a picture cropped to what is drawn, whole or not at all; make its folder; return the path."""
    with atomic_write(path) as handle:
        figure.savefig(handle, format=path.suffix[1:], dpi=dpi, bbox_inches="tight")
    return path


def colormap(name: str) -> Any:
    """Return matplotlib's colours of a name: numbers [...] -> RGBA [..., 4]."""
    from matplotlib import colormaps

    return colormaps[name]


def font_file() -> str:
    """Return the file of matplotlib's own font: it is always there, and has more than Latin letters."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")


def whole_numbers(axes: Axes) -> None:
    """Let an axis of epochs have no marks between two of them."""
    axes.xaxis.get_major_locator().set_params(integer=True)


def heat_map(axes: Axes, values: np.ndarray, label: str, highest: float = 1, **settings: Any) -> None:
    """Show values [rows, columns] of 0 to `highest` as colours, `label` beside their scale."""
    image = axes.imshow(values, vmin=0, vmax=highest, cmap="Blues", **settings)
    axes.figure.colorbar(image, label=label, fraction=0.046)


def draw_lines(
    path: Path,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    at: Mapping[str, float] | None = None,
    level: Mapping[str, float] | None = None,
    **settings: Any,
) -> Path:
    """Draw name -> (x, y) as lines over one pair of axes; return the path.

    styles: name -> what `Axes.plot` takes; at: name -> x of an upright line; level: name -> y of a flat one;
    settings: of the axes (title, xlabel, xscale, ylim, …). An empty name is not in the legend.
    """
    figure, axes = new_figure((8, 5))
    for name, (x, y) in lines.items():
        axes.plot(x, y, **{"label": name or None, **(styles or {}).get(name, {})})
    for name, place in (at or {}).items():
        axes.axvline(place, color="tab:blue", linestyle="--", label=name)
    for name, place in (level or {}).items():
        axes.axhline(place, color="tab:gray", linestyle="--", label=name)
    axes.set(**settings)
    if settings.get("xlabel") == "epoch":
        whole_numbers(axes)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
    return save_figure(figure, path)


def draw_bars(path: Path, labels: Sequence[str], series: Mapping[str, Sequence[float]], title: str = "") -> Path:
    """Draw one group of bars (0 to 1) for each label; NaN is drawn as a small cross. Return the path."""
    figure, axes = new_figure((2.4 + 0.75 * len(labels), 3.6))
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        places = np.arange(len(labels)) + (k - (len(series) - 1) / 2) * width
        values = np.asarray(values, dtype=float)
        axes.bar(places, np.nan_to_num(values), width, label=name, color=_COLORS[k % 3])
        axes.plot(places[np.isnan(values)], np.full(np.isnan(values).sum(), 0.015), "x", color="black", markersize=5)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set(ylim=(0, 1), title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return save_figure(figure, path)


def draw_confusion(path: Path, counts: np.ndarray, labels: Sequence[str], title: str = "") -> Path:
    """Draw counts [L, L + 1] (a row a true label, the last column "none") as shares of each row; return the path."""
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    size = 1.6 + 0.62 * len(labels)
    figure, axes = new_figure((size + 1.2, size))
    heat_map(axes, np.nan_to_num(shares), "share of the row")
    columns = [*labels, NONE]
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), [f"{name} ({row.sum():g})" for name, row in zip(labels, counts, strict=True)])
    axes.set(xlabel="answered", ylabel="true (count)", title=title)
    for i, j in np.argwhere(shares >= 0.005):
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", color=color, fontsize=8)
    return save_figure(figure, path)
