import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from affect.core.plots import draw_bars, draw_confusion, draw_lines, new_figure, save_figure


def ink(path):
    """Share of the pixels of a picture that are not white."""
    return float(np.mean(plt.imread(path)[..., :3].min(axis=-1) < 0.9))


def test_empty_rows_and_nan_can_be_drawn(tmp_path):
    counts = np.array([[3, 1, 0], [0, 0, 0]])
    assert ink(draw_confusion(tmp_path / "sub" / "confusion.png", counts, ["a", "b"])) > 0.02
    assert ink(draw_bars(tmp_path / "bars.png", ["a", "b"], {"recall": [0.5, float("nan")]})) > 0.02


def test_no_figure_outlives_its_file(tmp_path):
    draw_lines(tmp_path / "lines.png", {"loss": ([1, 2, 3], [3, float("nan"), 1])}, at={"best": 3}, level={"base": 2})
    assert ink(tmp_path / "lines.png") > 0.005
    assert not plt.get_fignums()


def test_a_figure_that_cannot_be_drawn_leaves_no_file(tmp_path):
    figure, axes = new_figure((2, 2))
    axes.set_title("$\\nothing$")  # no such symbol: found only when it is drawn
    with pytest.raises(ValueError, match="nothing"):
        save_figure(figure, tmp_path / "broken.png")
    assert not list(tmp_path.iterdir())


def test_matplotlib_waits_for_the_first_figure():
    code = "import sys, affect.core.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
