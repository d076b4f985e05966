"""A run that was killed or asked to stop gives what an unbroken one gives, SAM and moving average included."""

import json
import os
import signal

import pytest
import torch
from accelerate import Accelerator

import affect.engine.loop
import affect.engine.trainer
from affect.engine.checkpoint import find_checkpoint
from affect.engine.run_folder import choose_folder
from affect.engine.stop import EXIT_CODE
from affect.expressions.config import load_fer_config
from affect.expressions.network_file import read_card
from fer_runs import assert_same_run, history, kill_at, moments, run, state, write_config

pytestmark = pytest.mark.usefixtures("no_pictures")
SAM_EMA = {"sam": True, "ema": 0.9, "grad_accum_steps": 2, "batch_size": 3, "label_smoothing": 0.1, "save_every": 1}


@pytest.mark.parametrize("line", ["Train: data epoch: [2]  [1/3]"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, line):
    whole, broken = (write_config(tmp_path / f"{name}.yaml", run=SAM_EMA) for name in ("whole", "broken"))
    assert run(whole) == 0
    kill_at(broken, line)
    assert 3 <= state(tmp_path / "broken").step <= 5  # within the second epoch, or at its start
    assert run(broken) == 0
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "sam": True, "sam_adaptive": True, "scheduler": "plateau", "plateau_patience": 0},
        {"optimizer": "adam", "ema": 0.99, "num_workers": 2, "scheduler": "exponential", "schedule_by": "epoch"},
        SAM_EMA,
    ],
)
def test_a_run_killed_again_and_again_goes_on_to_the_same_bits(tmp_path, settings):
    settings = {**settings, "epochs": 5}
    images = {"balanced": True, "cutmix": 1.0}
    whole, broken = (
        write_config(tmp_path / f"{name}.yaml", run=settings, images=images) for name in ("whole", "broken")
    )
    assert run(whole) == 0
    for line in (
        "Train: data epoch: [1]  [0",
        "Train: data epoch: [2]  [1",
        "epoch 2 done",
        "Train: data epoch: [4]  [2",
    ):
        kill_at(broken, line)
    assert run(broken) == 0
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("moves", [1, 4, 6])
def test_sigterm_lets_the_step_end_and_saves_it(tmp_path, monkeypatch, moves):
    whole, stopped = (write_config(tmp_path / f"{name}.yaml", run=SAM_EMA) for name in ("whole", "stopped"))
    run(whole)
    step, count = affect.engine.trainer.training_step, iter(range(1, 100))

    def interrupted(*arguments):
        if next(count) == moves:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(affect.engine.trainer, "training_step", interrupted)
        assert run(stopped, "run.save_every=null") == EXIT_CODE
    left = state(tmp_path / "stopped")
    assert (left.step, len(left.history)) == (moves, (moves - 1) // 3)
    assert run(stopped) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_finished_run_says_so_and_is_left_alone(tmp_path, caplog):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1})
    run(path)
    before = (tmp_path / "toy" / "last.safetensors").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert run(path) == 0
    assert caplog.messages[-1].endswith("all epochs are done; for a new run use another run.output_dir")
    assert (tmp_path / "toy" / "last.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_not_mixed_into_a_run(tmp_path):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1})
    run(path)
    with pytest.raises(ValueError, match=r"other settings \(images\.crop, run\.init_lr\).*output_dir"):
        run(path, "lr=0.5", "crop=0.1")
    assert run(path, "num_workers=1", "log_every=9") == 0  # these change nothing


def test_resume_goes_on_with_more_epochs_in_a_folder_of_its_own(tmp_path):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 2, "scheduler": "constant", "ema": 0.5})
    run(path)
    longer = ("epochs=3", f"output_dir={tmp_path / 'longer'}")
    run(path, *longer, f"resume={tmp_path / 'toy'}")
    unbroken = ("epochs=3", f"output_dir={tmp_path / 'unbroken'}")
    run(path, *unbroken)
    assert history(tmp_path / "longer") == history(tmp_path / "unbroken")
    for name in ("best.safetensors", "last.safetensors"):
        assert read_card(tmp_path / "longer" / name).scores == read_card(tmp_path / "unbroken" / name).scores


def test_resume_keeps_the_new_settings_of_the_optimizer(tmp_path, monkeypatch):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1, "weight_decay": 0.1})
    run(path)
    seen = []
    original = affect.engine.trainer.training_step
    monkeypatch.setattr(
        affect.engine.trainer,
        "training_step",
        lambda task, model, optimizer, *rest: (
            seen.append(optimizer.param_groups[0]["weight_decay"]) or original(task, model, optimizer, *rest)
        ),
    )
    checkpoint = find_checkpoint(tmp_path / "toy")
    run(path, "epochs=2", "wd=0.3", f"resume={checkpoint}", f"output_dir={tmp_path / 'on'}")
    assert set(seen) == {0.3}
    run(path, "epochs=2", "optimizer=sgd", f"resume={tmp_path / 'toy'}", f"output_dir={tmp_path / 'sgd'}")
    assert all(state.keys() == {"momentum_buffer"} for state in moments(tmp_path / "sgd")["state"].values())


def test_moments_go_on_in_the_layout_of_their_weights(tmp_path):
    """Fused optimizers walk along the memory of both."""
    path = write_config(tmp_path / "toy.yaml", model={"channels_last": True}, run={"epochs": 1, "ema": 0.5})
    constant = ("scheduler=constant",)
    run(path, *constant)
    run(path, *constant, "epochs=2", f"resume={tmp_path / 'toy'}", f"output_dir={tmp_path / 'on'}")
    run(path, *constant, "epochs=2", f"output_dir={tmp_path / 'unbroken'}")
    assert_same_run(tmp_path / "on", tmp_path / "unbroken")


def test_a_checkpoint_that_cannot_be_used_is_one_sentence(tmp_path):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1})
    run(path)
    checkpoint = find_checkpoint(tmp_path / "toy")
    elsewhere = f"output_dir={tmp_path / 'x'}"
    with pytest.raises(ValueError, match=r"expected the state of this network, found another one's"):
        run(path, "width=0.5", f"resume={checkpoint}", elsewhere)
    whole = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match=r"optimizer\.pt: expected the state of this run, but it cannot be read"):
        run(path, "epochs=2", f"resume={checkpoint}", elsewhere)
    (checkpoint / "left_out.json").write_text("{")
    with pytest.raises(ValueError, match=r"left_out\.json: expected the images that the run leaves out"):
        run(path, "epochs=2", f"resume={checkpoint}", elsewhere)
    with pytest.raises(ValueError, match=r"nowhere: expected a checkpoint folder"):
        run(path, f"resume={tmp_path / 'nowhere'}", elsewhere)


def test_a_run_of_the_version_before_is_not_gone_on_from(tmp_path):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1})
    old = tmp_path / "toy"
    old.mkdir()
    (old / "resume.pt").write_bytes(b"")
    for options in ((), (f"resume={old}", f"output_dir={tmp_path / 'x'}"), (f"resume={old / 'resume.pt'}",)):
        with pytest.raises(ValueError, match=r"resume\.pt.* cannot be gone on from"):
            run(path, *options)


def test_without_an_output_dir_an_unfinished_run_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "toy.yaml", run={"output_dir": None, "save_every": 1})
    step, count = affect.engine.trainer.training_step, iter(range(100))

    def broken(*arguments):
        if next(count) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(affect.engine.trainer, "training_step", broken)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    run(path)
    (folder,) = (tmp_path / "output" / "toy").iterdir()
    assert len(history(folder)) == 3
    assert read_card(folder).epoch >= 1
    new = choose_folder(load_fer_config(path), "toy")[0]  # the other is finished
    assert new.parent.samefile(folder.parent)
    assert not new.exists()


def test_a_scalers_state_goes_through_the_file(tmp_path, monkeypatch):
    """float16 needs a GPU; the scaler that accelerate would have runs on the CPU as well."""

    def scaled(settings):
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        return accelerator

    def scale(folder):
        return json.loads((find_checkpoint(folder) / "scaler.json").read_text())

    monkeypatch.setattr(affect.engine.loop, "start_accelerator", scaled)
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1, "scheduler": "constant", "sam": True})
    run(path)
    found = scale(tmp_path / "toy")
    assert (found["scale"], found["_growth_tracker"]) == (1024.0, 3)
    run(path, "epochs=2", f"resume={tmp_path / 'toy'}", f"output_dir={tmp_path / 'on'}")
    run(path, "epochs=2", f"output_dir={tmp_path / 'unbroken'}")
    assert scale(tmp_path / "on")["scale"] == 2048.0
    assert scale(tmp_path / "on") == scale(tmp_path / "unbroken")
    assert_same_run(tmp_path / "on", tmp_path / "unbroken")
