"""Samples of what a network names right and wrong: the surest cases of each class, with the faces."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from affect.core.files import atomic_write
from affect.core.plots import new_figure, save_figure
from affect.core.schema import check_name
from affect.expressions.evaluation import Evaluation
from affect.expressions.samples import NONE, SEEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 24
"""Letters of a line below a face."""
_RIGHT, _WRONG = "tab:green", "tab:red"


@dataclass(frozen=True)
class Case:
    """One image and what was said of it."""

    name: str
    row: str
    """The true class (multi-label: the likeliest one of the truth) that it is shown under."""
    true: str
    """Class, or classes joined by commas."""
    predicted: str
    probability: float
    """Of what was predicted; multi-label: of its least sure class, yes or no."""

    @property
    def right(self) -> bool:
        """Whether exactly what is true was said."""
        return self.true == self.predicted


def surest_cases(evaluation: Evaluation, classes: Sequence[str], multi_label: bool, most: int) -> list[Case]:
    """Return at most `most` right and as many wrong cases of each true class, the surest first."""
    finite = np.isfinite(evaluation.probabilities).all(axis=1)
    cases = [_case(evaluation, i, classes, multi_label) for i in np.flatnonzero(finite)]
    cases.sort(key=lambda case: -case.probability)
    return [
        case
        for name in classes
        for right in (True, False)
        for case in [each for each in cases if each.row == name and each.right == right][:most]
    ]


def _case(evaluation: Evaluation, i: int, classes: Sequence[str], multi_label: bool) -> Case:
    row, said = classes[evaluation.labels[i]], evaluation.probabilities[i]
    if not multi_label:
        return Case(evaluation.names[i], row, row, classes[said.argmax()], float(said.max()))
    true, predicted = (
        ", ".join(name for name, value in zip(classes, values, strict=True) if value >= SEEN) or NONE
        for values in (evaluation.targets[i], said)
    )
    return Case(evaluation.names[i], row, true, predicted, float(np.maximum(said, 1 - said).min()))


def draw_gallery(path: Path, cases: Sequence[Case], read: Callable[[str], np.ndarray], title: str = "") -> Path:
    """Draw a row of faces for each class, right ones to the left, wrong ones framed and marked; return the path.

    read: name of an image -> uint8 RGB [H, W, 3]. Raises ValueError without cases.
    """
    if not cases:
        raise ValueError("no cases to draw: expected an evaluation of at least one image")
    shown: dict[tuple[str, bool], list[Case]] = defaultdict(list)
    for case in cases:
        shown[case.row, case.right].append(case)
    rows = list(dict.fromkeys(case.row for case in cases))
    right, wrong = (max(len(shown[row, kind]) for row in rows) for kind in (True, False))
    size = (1.65 * (right + wrong) + 0.9, 2.15 * len(rows) + 0.7)
    figure, grid = new_figure(size, len(rows), right + wrong, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=True):
        for axes, case in [
            *zip(line, shown[row, True], strict=False),
            *zip(line[right:], shown[row, False], strict=False),
        ]:
            _draw_case(axes, case, read(case.name))
        line[0].text(-0.12, 0.5, row, rotation=90, ha="right", va="center", transform=line[0].transAxes, weight="bold")
    if right:
        grid[0][0].set_title("surest right", loc="left", fontsize=10, color=_RIGHT)
    if wrong:
        grid[0][right].set_title("surest wrong", loc="left", fontsize=10, color=_WRONG)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.12 / len(rows)))
    return save_figure(figure, path, dpi=110)


def _draw_case(axes: Axes, case: Case, picture: np.ndarray) -> None:
    axes.set_axis_on()
    side = max(picture.shape[:2])
    axes.imshow(picture)
    across, down = ((side - length) / 2 for length in (picture.shape[1], picture.shape[0]))
    axes.set(xticks=[], yticks=[], xlim=(-0.5 - across, side - 0.5 - across), ylim=(side - 0.5 - down, -0.5 - down))
    colour = _RIGHT if case.right else _WRONG
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1 if case.right else 3)
    said = f"{case.predicted} {case.probability:.2f}"
    lines = [said] if case.right else [f"✗ {said}", f"true: {case.true}"]
    words = "\n".join(textwrap.fill(line, WIDTH) for line in lines)
    axes.set_xlabel(words, fontsize=8, color=colour, labelpad=3)


def write_samples(folder: Path, cases: Sequence[Case], read: Callable[[str], np.ndarray]) -> list[Path]:
    """Write each case as a picture of its own, `{class}/right_1.png` or `{class}/wrong_1.png`; return the paths."""
    paths: list[Path] = []
    numbers: Counter[str] = Counter()
    for case in cases:
        kind = f"{check_name(case.row, 'class')}/{'right' if case.right else 'wrong'}"
        numbers[kind] += 1
        paths.append(folder / f"{kind}_{numbers[kind]}.png")
        with atomic_write(paths[-1]) as handle:
            Image.fromarray(read(case.name)).save(handle, format="PNG")
    return paths
