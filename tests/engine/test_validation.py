import json

import numpy as np
import pandas as pd
import pytest

from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from train_runs import losses, run


def val_losses(checkpoint):
    return [entry["val_loss"] for entry in read_state(checkpoint).history]


def test_the_loss_of_the_held_out_split_is_written_after_every_epoch(tiny_world, tmp_path, caplog):
    tiny_world.run.val_split, tiny_world.run.keep_checkpoints = "test", 9
    folder = run(tiny_world, tmp_path)
    states = [read_state(checkpoint) for checkpoint in list_checkpoints(folder)]
    np.testing.assert_array_equal(val_losses(find_checkpoint(folder)), [state.val_loss for state in states])
    best = min(states, key=lambda state: state.val_loss)
    assert (states[-1].best_epoch, states[-1].best_score) == (best.epoch, best.val_loss)


def test_validation_changes_nothing_of_the_training(tiny_world, tmp_path):
    without = losses(find_checkpoint(run(tiny_world, tmp_path)))
    tiny_world.run.val_split, tiny_world.run.output_dir = "test", str(tmp_path / "validated")
    np.testing.assert_array_equal(losses(find_checkpoint(run(tiny_world, tmp_path))), without)


def test_validation_does_not_depend_on_batches_or_chance(tiny_world, tmp_path):
    """Nothing moves at a rate of (next to) zero: what is left is the noise of dropout, of which there is none."""
    tiny_world.run.init_lr, tiny_world.run.val_split, tiny_world.run.warmup_steps = 1e-30, "test", 0
    found = [val_losses(find_checkpoint(run(tiny_world, tmp_path)))]
    tiny_world.run.batch_size_train, tiny_world.run.output_dir = 3, str(tmp_path / "threes")
    found.append(val_losses(find_checkpoint(run(tiny_world, tmp_path))))
    assert len(set(found[0])) == 1
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_training_ends_when_the_held_out_loss_no_longer_falls(tiny_world, tmp_path):
    """A model that learns to say the opposite of the held-out answers; the best checkpoint outlives the last ones."""
    table = pd.read_csv(tmp_path / "clips.csv")
    held_out = table.split == "test"
    table.loc[held_out, "reason"] = "zq xj kv wq zz jx qk vw xz kj qz."
    table.loc[held_out, "openset"] = "['zq xj kv']"
    table.to_csv(tmp_path / "clips.csv", index=False)
    settings = tiny_world.run
    settings.val_split, settings.early_stop, settings.keep_checkpoints = "test", 2, 1
    settings.max_epoch, settings.iters_per_epoch, settings.init_lr, settings.warmup_steps = 30, 8, 2e-2, 0
    folder = run(tiny_world, tmp_path)
    state = read_state(find_checkpoint(folder))
    assert state.finished
    assert state.epoch == state.best_epoch + 2 < 30
    assert state.reason == f"no better validation loss than that of epoch {state.best_epoch} in 2 epochs"
    assert [read_state(c).epoch for c in list_checkpoints(folder)] == [state.best_epoch, state.epoch]
    before = find_checkpoint(folder).stat().st_mtime_ns
    run(tiny_world, tmp_path)  # the same command again has nothing to do
    assert find_checkpoint(folder).stat().st_mtime_ns == before


def test_a_split_that_the_table_does_not_have_is_refused_before_training(tiny_world, tmp_path):
    tiny_world.run.val_split = "val"
    with pytest.raises(ValueError, match="expected clips of split 'val', found none"):
        run(tiny_world, tmp_path)
    assert not list_checkpoints(tmp_path / "run")


def test_a_held_out_split_that_is_trained_on_is_noticed(tiny_world, tmp_path, caplog):
    table = pd.read_csv(tmp_path / "clips.csv")
    table.drop(columns="split").to_csv(tmp_path / "clips.csv", index=False)
    tiny_world.run.val_split, tiny_world.run.max_epoch, tiny_world.run.iters_per_epoch = "test", 1, 2
    run(tiny_world, tmp_path)
    assert "12 of its 12 clips are trained on" in caplog.text


def test_states_of_older_runs_are_read(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"epoch": 1, "step": 4, "loss": 2.0, "finished": False}))
    assert read_state(tmp_path).best_epoch is None
