"""Checkpoints are whole or not there; one process at a time writes to a run's folder; what stays of a run."""

import fcntl
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import affect.engine.checkpoint
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.engine.metrics import Metrics
from affect.engine.run_folder import locked
from toy_task import ToyTask, toy_losses, toy_run, train_toy


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_leaves_checkpoints_metrics_and_its_configuration(tmp_path):
    train_toy(toy_run(tmp_path / "run", keep_checkpoints=1))
    last = find_checkpoint(tmp_path / "run")
    assert entries(tmp_path / "run") == [".lock", last.name, "config.yaml", "metrics.jsonl"]
    assert entries(last) == ["config.yaml", "model.safetensors", "optimizer.pt", "state.json"]


def test_the_best_epoch_is_kept_and_told_and_early_stop_counts_from_it(tmp_path):
    config = toy_run(tmp_path / "run", max_epoch=9, keep_checkpoints=1, early_stop=2)
    task = train_toy(config, ToyTask(config.run, scores=[3.0, 1.0, float("nan"), 2.0, 0.5]))
    assert task.ended == [(1, True, False), (2, True, False), (3, False, False), (4, False, True)]
    state = read_state(find_checkpoint(tmp_path / "run"))
    assert (state.best_epoch, state.best_score, state.epoch) == (2, 1.0, 4)
    assert state.reason == "no better validation loss than that of epoch 2 in 2 epochs"
    assert [entry["val_loss"] for entry in state.history] == [3.0, 1.0, None, 2.0]
    assert [read_state(c).epoch for c in list_checkpoints(tmp_path / "run")] == [2, 4]


def test_plateau_goes_on_after_a_validation_loss_that_is_no_number(tmp_path):
    config = toy_run(tmp_path / "run", max_epoch=3, scheduler="plateau", plateau_patience=0)
    train_toy(config, ToyTask(config.run, scores=[1.0, float("nan"), 0.5]))
    history = read_state(find_checkpoint(tmp_path / "run")).history
    assert [entry["lr"] for entry in history] == [0.01, 0.01, 0.005]


def test_a_checkpoint_every_so_many_steps_lasts_until_its_epoch_ends(tmp_path, monkeypatch):
    def broken(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "validate", broken)
        with pytest.raises(KeyboardInterrupt):
            train_toy(toy_run(tmp_path / "run", save_every=2))
    (left,) = list_checkpoints(tmp_path / "run")
    assert left.name.startswith("checkpoint_000000_step_000000002_loss_")
    train_toy(toy_run(tmp_path / "whole", save_every=2))
    on = train_toy(toy_run(tmp_path / "run", save_every=2))
    assert toy_losses(tmp_path / "run") == toy_losses(tmp_path / "whole")
    assert [read_state(c).step for c in list_checkpoints(tmp_path / "run")] == [3, 6]
    assert read_state(find_checkpoint(tmp_path / "run")) == read_state(find_checkpoint(tmp_path / "whole"))
    assert on.ended == [(1, True, False), (2, on.ended[1][1], True)]


@contextmanager
def room(size: int | None) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk; or, without one, let the next line of metrics not fit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        if size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        else:
            patch.setattr(Metrics, "write", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "what"),
    [(2000, "the checkpoint"), (5000, "the checkpoint"), (None, "what comes of the run")],
    ids=["safetensors", "torch", "metrics"],
)
def test_a_full_disk_is_one_sentence_the_last_checkpoint_is_whole_and_the_run_goes_on(tmp_path, size, what):
    settings = {"scheduler": "constant", "max_epoch": 1}
    train_toy(toy_run(tmp_path / "run", **settings))
    (kept,) = list_checkpoints(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    settings["max_epoch"] = 2
    with (
        room(size),
        pytest.raises(OSError, match=rf"run: {what} cannot be written \(.*\); is the disk full\?") as error,
    ):
        train_toy(toy_run(tmp_path / "run", **settings))
    assert f"the last one, {kept.name}, is whole" in str(error.value) and "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert [name for name in entries(tmp_path / "run") if name.startswith(".")] == [".lock"]
    train_toy(toy_run(tmp_path / "run", **settings))
    train_toy(toy_run(tmp_path / "whole", **settings))
    assert toy_losses(tmp_path / "run") == toy_losses(tmp_path / "whole")


def test_old_checkpoints_go_only_when_the_new_one_is_in_place(tmp_path, monkeypatch):
    """Removal is what may take long, or be broken off."""
    seen = []
    drop = affect.engine.checkpoint._drop
    monkeypatch.setattr(
        affect.engine.checkpoint, "_drop", lambda path: seen.append(list_checkpoints(path.parent)) or drop(path)
    )
    train_toy(toy_run(tmp_path / "run", keep_checkpoints=1, max_epoch=1))
    train_toy(toy_run(tmp_path / "on", keep_checkpoints=1, max_epoch=4))
    assert seen
    assert all(len(there) >= 2 for there in seen)


@pytest.mark.parametrize("left", ["removed", "hidden", "partial"])
def test_what_a_killed_process_left_disturbs_nothing(tmp_path, left):
    train_toy(toy_run(tmp_path / "whole", scheduler="constant"))
    train_toy(toy_run(tmp_path / "run", scheduler="constant", max_epoch=1))
    (first,) = list_checkpoints(tmp_path / "run")
    if left == "removed":  # by the removal of older versions, file by file
        shutil.copytree(first, tmp_path / "run" / "checkpoint_000002_loss_0.100")
        (tmp_path / "run" / "checkpoint_000002_loss_0.100" / "state.json").unlink()
    else:
        end = {"hidden": "old", "partial": "partial"}[left]
        shutil.copytree(first, tmp_path / "run" / f".checkpoint_000002_loss_0.100.{end}")
    assert list_checkpoints(tmp_path / "run") == [first]
    train_toy(toy_run(tmp_path / "on", scheduler="constant", resume_ckpt_path=str(tmp_path / "run")))
    assert toy_losses(tmp_path / "on") == toy_losses(tmp_path / "whole")


def test_a_second_process_in_the_folder_of_a_run_is_refused_before_it_opens_anything(tmp_path):
    def opened(*arguments):
        raise AssertionError("the task was opened")

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"run: another process is training there; wait for it, or give another"):
            affect.engine.loop.train(toy_run(tmp_path / "run"), "toy.yaml", opened)
    train_toy(toy_run(tmp_path / "run", max_epoch=1))


def test_a_folder_in_which_nothing_came_about_goes(tmp_path):
    with pytest.raises(ValueError, match="bad data"), locked(tmp_path / "run"):
        raise ValueError("bad data")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["resume.pt", "checkpoint-4/trainer_state.json"])
def test_runs_that_can_no_longer_be_gone_on_from_are_refused_in_one_sentence(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"a run of an earlier version .*{name}.* cannot be gone on from; give an"):
        train_toy(toy_run(tmp_path / "run"))


def test_another_optimizer_begins_with_moments_of_its_own_and_settings_are_the_new_ones(tmp_path):
    train_toy(toy_run(tmp_path / "run", max_epoch=1, weight_decay=0.1))
    on = {"resume_ckpt_path": str(tmp_path / "run")}
    train_toy(toy_run(tmp_path / "sgd", optimizer="sgd", **on))
    state = torch.load(find_checkpoint(tmp_path / "sgd") / "optimizer.pt", weights_only=True)
    assert all(entry.keys() == {"momentum_buffer"} for entry in state["state"].values())
    train_toy(toy_run(tmp_path / "decay", weight_decay=0.3, **on))
    state = torch.load(find_checkpoint(tmp_path / "decay") / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.3, 0.0]


def test_a_state_that_cannot_be_used_is_one_sentence(tmp_path):
    train_toy(toy_run(tmp_path / "run", max_epoch=1))
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    whole = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(whole[:-500])
    config = toy_run(tmp_path / "on", resume_ckpt_path=str(checkpoint))
    with pytest.raises(ValueError, match=r"optimizer\.pt: expected the state of this run") as error:
        train_toy(config)
    assert "\n" not in str(error.value)
    (checkpoint / "state.json").write_text(json.dumps({"epoch": 1}))
    with pytest.raises(ValueError, match=r"state\.json: expected epoch, step, loss and finished"):
        train_toy(config)


def test_a_run_goes_on_with_more_epochs_in_a_folder_of_its_own(tmp_path):
    settings = {"scheduler": "constant"}
    train_toy(toy_run(tmp_path / "run", max_epoch=1, **settings))
    train_toy(toy_run(tmp_path / "longer", resume_ckpt_path=str(tmp_path / "run"), **settings))
    train_toy(toy_run(tmp_path / "unbroken", **settings))
    assert toy_losses(tmp_path / "longer") == toy_losses(tmp_path / "unbroken")
    ours, theirs = (read_state(find_checkpoint(tmp_path / name)) for name in ("longer", "unbroken"))
    assert ours == theirs


def test_validation_before_the_first_step_is_told_and_is_not_the_best(tmp_path):
    config = toy_run(tmp_path / "run")
    train_toy(config, ToyTask(config.run, scores=[0.1, 3.0, 2.0], validates_first=True))
    state = read_state(find_checkpoint(tmp_path / "run"))
    assert [(entry["epoch"], entry["val_loss"]) for entry in state.history] == [(0, 0.1), (1, 3.0), (2, 2.0)]
    assert state.best_epoch == 2


@pytest.mark.parametrize(
    "content", ['{"epoch": "x"}', '{"epoch": 1, "step": 2}', "[]", "{", '{"epoch": 1e999, "step": 1}']
)
def test_a_state_of_other_values_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"state\.json: expected (epoch, step, loss and finished|a JSON object)"
    ) as error:
        read_state(tmp_path)
    assert "\n" not in str(error.value)
