import numpy as np
import pytest

from affect.engine.curves import TrainingVisualizer, smoothed


def filled(folder, epochs, enabled=True):
    visualizer = TrainingVisualizer(folder, enabled)
    for step in range(epochs * 3):
        visualizer.record(step, 1e-4 / (step + 1), 2.0 - 0.1 * step, step // 3 + 1)
    return visualizer


def test_every_epoch_has_picture_and_numbers_and_every_fifth_a_large_one(tmp_path):
    visualizer = filled(tmp_path, 5)
    visualizer.end_epoch(4)
    visualizer.end_epoch(5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "training_curves_epoch4.png",
        "training_curves_epoch5.png",
        "training_curves_hd_epoch5.png",
        "training_data_epoch4.npz",
        "training_data_epoch5.npz",
    ]


def test_the_last_epoch_has_a_large_picture(tmp_path):
    filled(tmp_path, 1).end_epoch(1, last=True)
    assert (tmp_path / "training_curves_hd_epoch1.png").is_file()


def test_nothing_is_drawn_when_turned_off(tmp_path):
    filled(tmp_path / "off", 1, enabled=False).end_epoch(1, last=True)
    assert not (tmp_path / "off").exists()


def test_numbers_read_back(tmp_path):
    visualizer = filled(tmp_path, 2)
    visualizer.record_validation(1, 1.5)
    visualizer.save_data(tmp_path / "x.npz")
    again = TrainingVisualizer(tmp_path)
    again.load_data(tmp_path / "x.npz")
    assert again.epochs == [1, 1, 1, 2, 2, 2]
    assert (again.val_epochs, again.val_losses) == ([1], [1.5])
    assert again.epoch_mean(again.losses, 2) == pytest.approx(1.6)
    assert set(np.load(tmp_path / "x.npz")) >= {"steps", "lrs", "losses", "epochs", "paddings", "val_losses"}
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.npz"):
        again.load_data(tmp_path / "bad.npz")


def test_smoothing_is_a_mean_over_the_window():
    assert smoothed([1.0, 3.0, 5.0, 7.0], window=2).tolist() == [1.0, 2.0, 4.0, 6.0]


def test_statistics_name_the_best_step(tmp_path):
    table = filled(tmp_path, 2).statistics()
    cells = [cell for column in table.columns for cell in column.cells]
    assert "1.500000 (step 5)" in cells
