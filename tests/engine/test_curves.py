import numpy as np
import pytest

import affect.engine.curves
from affect.engine.curves import arrays, draw_epoch, loss_by_epoch, smoothed, statistics
from affect.engine.metrics import Metrics, read_metrics


def lines(epochs):
    for step in range(epochs * 3):
        yield {"step": step + 1, "epoch": step // 3 + 1, "lr": 1e-4 / (step + 1), "loss": 2.0 - 0.1 * step}
        if step % 3 == 2:
            yield {"epoch": step // 3 + 1, "step": step + 1, "val_loss": 1.5}


def written(folder, epochs):
    metrics = Metrics(folder)
    for line in lines(epochs):
        metrics.write(line)
    metrics.close()
    return folder


def pictures(folder):
    return sorted(path.name for path in (folder / "training_curves").iterdir())


def test_every_long_epoch_has_a_picture_and_every_fifth_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(affect.engine.curves, "LONG_EPOCH", 3)
    written(tmp_path, 5)
    draw_epoch(tmp_path, 4, per_epoch=3)
    draw_epoch(tmp_path, 5, per_epoch=3)
    assert pictures(tmp_path) == [
        "training_curves_epoch4.png",
        "training_curves_epoch5.png",
        "training_curves_hd_epoch5.png",
    ]


def test_after_short_epochs_only_every_fifth_is_drawn_and_the_last(tmp_path):
    written(tmp_path, 3)
    draw_epoch(tmp_path, 2, per_epoch=3)
    assert not (tmp_path / "training_curves").exists()
    draw_epoch(tmp_path, 3, per_epoch=3, last=True)
    assert pictures(tmp_path) == [
        "training_curves_epoch3.png",
        "training_curves_hd_epoch3.png",
        "training_data.npz",
    ]
    with np.load(tmp_path / "training_curves" / "training_data.npz") as data:
        assert data["epochs"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert (data["val_epochs"].tolist(), data["val_losses"].tolist()) == ([1, 2, 3], [1.5] * 3)


def test_losses_of_an_epoch_have_mean_and_deviation(tmp_path):
    epochs, means, deviations = loss_by_epoch(arrays(*read_metrics(written(tmp_path, 2))))
    assert epochs.tolist() == [1, 2]
    assert means.tolist() == pytest.approx([1.9, 1.6])
    assert deviations.tolist() == pytest.approx([0.1 * np.sqrt(2 / 3)] * 2)


def test_smoothing_is_a_mean_over_the_window():
    assert smoothed(np.array([1.0, 3.0, 5.0, 7.0]), window=2).tolist() == [1.0, 2.0, 4.0, 6.0]


def test_statistics_name_the_best_step(tmp_path):
    table = statistics(read_metrics(written(tmp_path, 2))[0])
    cells = [cell for column in table.columns for cell in column.cells]
    assert "1.500000 (step 6)" in cells
