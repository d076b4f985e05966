"""Run folders of AffectGPT as they were before metrics.jsonl: curves.npz in every checkpoint, steps of one batch."""

import json

import numpy as np
import pytest
import yaml

from affect.engine.checkpoint import list_checkpoints, read_state
from affect.engine.metrics import FILE, read_metrics
from train_runs import assert_same_run, losses, run, sigterm_in_step

NEW_KEYS = "optimizer momentum adam_beta1 adam_eps sam sam_rho sam_adaptive ema scheduler schedule_by warmup_epochs"
NEW_KEYS += " gamma plateau_factor plateau_patience save_every"


def make_older(folder) -> None:
    """Give a run's checkpoints the files that they had, as their old description has it."""
    steps, epochs = read_metrics(folder)
    for checkpoint in list_checkpoints(folder):
        state = json.loads((checkpoint / "state.json").read_text())
        seen = [line for line in steps if line["step"] <= state["step"]]
        validated = [line for line in epochs if line["epoch"] <= state["epoch"] and "val_loss" in line]
        np.savez(
            checkpoint / "curves.npz",
            steps=np.array([line["step"] - 1 for line in seen]),
            lrs=np.array([line["lr"] for line in seen]),
            losses=np.array([line["loss"] for line in seen]),
            epochs=np.array([line["epoch"] for line in seen]),
            paddings=np.array([line["padding"] for line in seen]),
            val_epochs=np.array([line["epoch"] for line in validated]),
            val_losses=np.array([line["val_loss"] for line in validated]),
        )
        state["best_loss"] = state["best_score"]
        keys = ("epoch", "step", "loss", "finished", "reason", "val_loss", "best_epoch", "best_loss")
        (checkpoint / "state.json").write_text(json.dumps({key: state[key] for key in keys}, indent=1))
        config = yaml.safe_load((checkpoint / "config.yaml").read_text())
        del config["task"]
        for key in NEW_KEYS.split():
            del config["run"][key]
        (checkpoint / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / FILE).unlink()


@pytest.mark.parametrize("step", [3, 5])
def test_an_older_run_goes_on_to_the_same_bits(tiny_world, tmp_path, monkeypatch, step):
    """Left at the end of an epoch (within the validation), and within one."""
    tiny_world.run.val_split = "test"
    whole = run(tiny_world, tmp_path)
    tiny_world.run.output_dir = str(tmp_path / "older")
    with monkeypatch.context() as patch:
        sigterm_in_step(patch, step)
        run(tiny_world, tmp_path)
    make_older(tmp_path / "older")
    assert read_state(list_checkpoints(tmp_path / "older")[-1]).step == step + 1
    assert_same_run(run(tiny_world, tmp_path), whole)
    ours, theirs = (read_state(list_checkpoints(folder)[-1]) for folder in (tmp_path / "older", whole))
    assert (ours.loss, ours.val_loss, ours.best_epoch, ours.best_score) == (
        theirs.loss,
        theirs.val_loss,
        theirs.best_epoch,
        theirs.best_score,
    )
    assert [line["val_loss"] for line in read_metrics(tmp_path / "older")[1]] == [
        entry["val_loss"] for entry in theirs.history
    ]


def test_an_older_run_that_is_over_is_left_alone_and_one_that_counted_batches_is_refused(tiny_world, tmp_path):
    folder = run(tiny_world, tmp_path)
    kept = losses(list_checkpoints(folder)[-1])
    make_older(folder)
    run(tiny_world, tmp_path)
    assert not (folder / FILE).exists()
    first = list_checkpoints(folder)[0]
    tiny_world.run.output_dir = str(tmp_path / "on")
    run(tiny_world, tmp_path, f"run.resume_ckpt_path={first}")
    np.testing.assert_array_equal(losses(list_checkpoints(tmp_path / "on")[-1]), kept)
    tiny_world.run.output_dir = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"a step of this run was one batch .*gradient_accumulation_steps 2"):
        run(tiny_world, tmp_path, f"run.resume_ckpt_path={first}", "run.gradient_accumulation_steps=2")
