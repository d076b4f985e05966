"""Learning rates: the range test finds a bend that is there, the grid trains each combination once."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import affect.engine.trainer
import affect.tasks.expressions
import lr_search
from affect.expressions.config import load_fer_config


@pytest.fixture
def cfg_path(tmp_path):
    """A configuration of a tiny network on eight small pictures in two classes."""
    rng = np.random.default_rng(0)
    for split, name in ((s, c) for s in ("train", "val") for c in ("dark", "light")):
        folder = tmp_path / "data" / split / name
        folder.mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 100, (16, 16, 3)) + (120 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    path = tmp_path / "toy.yaml"
    path.write_text(
        "task: fer\n"
        "model: {arch: compact, width: 0.25, img_size: 16}\n"
        f"images: {{data_root: {tmp_path / 'data'}}}\n"
        "run: {batch_size: 4, num_workers: 0, device: cpu, ema: 0.9}\n"
    )
    return path


def falling_then_exploding(rate: float) -> float:
    """A loss that falls most steeply at 1e-3, is lowest at about 1e-2 and then grows without end."""
    return 2 - math.tanh(2 * (math.log10(rate) + 3)) + 20 * rate


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    rates = np.geomspace(1e-7, 1, 140).tolist()
    losses = lr_search.sweep(falling_then_exploding, rates)
    assert lr_search.suggestion(rates[: len(losses)], losses) == pytest.approx(1e-3, rel=0.3)


def test_the_suggestion_holds_against_noise():
    rng = np.random.default_rng(0)
    rates = np.geomspace(1e-7, 1, 140)
    losses = lr_search.sweep(lambda rate: falling_then_exploding(rate) + rng.normal(0, 0.2), rates)
    assert 2e-4 < lr_search.suggestion(rates[: len(losses)], losses) < 5e-3


def test_a_loss_that_never_falls_has_no_suggestion():
    rates = np.geomspace(1e-5, 1, 50)
    assert lr_search.suggestion(rates, lr_search.sweep(lambda rate: 2 + rate, rates)) is None


@pytest.mark.parametrize("last", [math.nan, math.inf, 1e6])
def test_the_test_ends_where_the_loss_explodes_and_leaves_that_out(last):
    asked = []

    def step(rate):
        asked.append(rate)
        return last if len(asked) > 30 else 1.0

    found = lr_search.sweep(step, np.geomspace(1e-5, 1, 50).tolist())
    assert len(asked) == 31
    assert found.tolist() == [1.0] * 30


def test_a_loss_that_explodes_at_once_is_explained():
    with pytest.raises(ValueError, match=r"exploded after 0 steps, at a rate of 1\.0e-05.*smaller --low"):
        lr_search.sweep(lambda rate: math.nan, np.geomspace(1e-5, 1, 50).tolist())


def test_a_range_test_writes_curve_and_suggestion_and_leaves_no_run(cfg_path, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--cfg-path", str(cfg_path), "--steps", "12", "--low", "1e-5", "--high", "1e-2", "--out", str(out)]
    assert lr_search.main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {"range.png", "range.csv", "range.json", "failures.csv"}
    rows = list(csv.DictReader((out / "range.csv").open()))
    np.testing.assert_allclose([float(row["rate"]) for row in rows], np.geomspace(1e-5, 1e-2, 12))
    assert json.loads((out / "range.json").read_text())["steps"] == 12
    before = (out / "range.csv").read_text()
    assert lr_search.main(arguments) == 0
    assert (out / "range.csv").read_text() == before  # the first one left nothing behind


def test_the_network_is_trained_at_each_rate_in_turn(cfg_path, tmp_path, monkeypatch):
    rates = []
    original = affect.engine.trainer.start_trainer

    def watched(*arguments, **more):
        trainer = original(*arguments, **more)
        step = trainer.next_step
        trainer.next_step = lambda rate: (rates.append(rate), step(rate))[1]
        assert trainer.average is None  # its updates would be for nothing
        return trainer

    monkeypatch.setattr(affect.engine.trainer, "start_trainer", watched)
    asked = np.geomspace(1e-4, 1e-2, 10).tolist()
    lr_search.range_test(load_fer_config(cfg_path), asked, tmp_path / "out")
    assert rates == asked


def trained(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/*/history.json")}


def test_a_grid_trains_every_combination_once(cfg_path, tmp_path, capsys):
    out = tmp_path / "out #1"  # where YAML would end
    arguments = ["--cfg-path", str(cfg_path), "--epochs", "1", "--out", str(out), "--grid"]
    assert lr_search.main([*arguments, "lr=1e-3,1e-2", "wd=0.1"]) == 0
    first = trained(out)
    assert set(first) == {"lr_1e-3-wd_0.1", "lr_1e-2-wd_0.1"}
    assert load_fer_config(out / "1_epochs" / "lr_1e-2-wd_0.1" / "config.yaml").run.init_lr == 1e-2
    assert lr_search.main([*arguments, "lr=1e-3,1e-2,3e-2", "wd=0.1"]) == 0
    second = trained(out)
    assert first.items() <= second.items()
    rows = json.loads((out / "grid.json").read_text())
    assert {row["run.lr"] for row in rows} == {"1e-3", "1e-2", "3e-2"}
    accuracies = [row["val_acc"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [row["run.lr"] for row in rows] == [row["run.lr"] for row in csv.DictReader((out / "grid.csv").open())]
    assert (out / "grid.png").is_file()


def test_a_rate_that_breaks_the_loss_is_told_and_not_tried_again(cfg_path, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--cfg-path", str(cfg_path), "--epochs", "1", "--out", str(out), "--grid", "lr=1e38,1e-3"]
    assert lr_search.main(arguments) == 0
    rows = json.loads((out / "grid.json").read_text())
    assert [(row["run.lr"], "val_acc" in row) for row in rows] == [("1e-3", True), ("1e38", False)]
    assert "not finite" in capsys.readouterr().out
    assert "step" in (out / "1_epochs" / "lr_1e38" / lr_search.NOT_FINITE).read_text()

    def refused(config, cfg_path):
        assert config.run.init_lr == 1e-3
        return True

    monkeypatch.setattr(affect.tasks.expressions, "train_expressions", refused)
    assert lr_search.main(arguments) == 0


def test_a_training_that_was_stopped_ends_the_grid_with_the_code_of_training(cfg_path, tmp_path, monkeypatch):
    asked, module = [], affect.tasks.expressions
    monkeypatch.setattr(module, "train_expressions", lambda *arguments: asked.append(arguments) or False)
    out = tmp_path / "out"
    assert lr_search.main(["--cfg-path", str(cfg_path), "--grid", "lr=1e-3,1e-2", "--out", str(out)]) == 143
    assert len(asked) == 1
    assert not (out / "grid.json").exists()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["lr"], "expected KEY=A,B"),
        (["lr=1e-3", "run.lr=1e-2"], "run.lr is given twice"),
        (["lrr=1e-3"], "unknown key; did you mean"),
        (["lr=1e-3,-1"], r"run\.init_lr"),
    ],
)
def test_a_wrong_grid_is_explained_before_anything_is_trained(cfg_path, tmp_path, monkeypatch, grid, message):
    monkeypatch.setattr(affect.tasks.expressions, "train_expressions", None)
    with pytest.raises(ValueError, match=message):
        lr_search.main(["--cfg-path", str(cfg_path), "--out", str(tmp_path / "out"), "--grid", *grid])


@pytest.mark.parametrize("more", [["--low", "0"], ["--low", "1", "--high", "0.1"], ["--steps", "3"]])
def test_a_wrong_range_is_explained(cfg_path, tmp_path, more):
    with pytest.raises(ValueError, match="expected 0 < low < high and at least 10 steps"):
        lr_search.main(["--cfg-path", str(cfg_path), "--out", str(tmp_path / "out"), *more])
