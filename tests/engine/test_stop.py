"""SIGTERM and Ctrl-C: the step at hand is finished, a checkpoint of that very step written, the process leaves."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from affect.cli import INTERRUPTED, train
from affect.data.config import save_config
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.engine.stop import EXIT_CODE, StopRequest
from affect.tasks.affectgpt import AffectGPTTask
from train_runs import ROOT, assert_same_run, losses, run, sigterm_in_step


def test_sigterm_is_noted_while_entered_and_kills_again_after():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_first_ctrl_c_is_noted_and_a_second_one_ends_at_once(caplog):
    caplog.set_level("INFO")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked and "Ctrl-C again ends at once" in caplog.text
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_thread_that_cannot_set_handlers_trains_all_the_same():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(StopRequest().__enter__().asked))
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(("step", "left_at"), [(0, 1), (5, 6), (7, 8)])
def test_a_run_that_was_asked_to_stop_goes_on_to_the_same_losses(tiny_world, tmp_path, monkeypatch, step, left_at):
    tiny_world.run.gradient_accumulation_steps, tiny_world.run.bucket_by_length = 2, True
    tiny_world.run.val_split = "test"
    whole = run(tiny_world, tmp_path)
    tiny_world.run.output_dir = str(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        sigterm_in_step(patch, step)
        save_config(tiny_world, tmp_path / "toy.yaml")
        assert train.main(["--cfg-path", str(tmp_path / "toy.yaml")]) == EXIT_CODE == 143
    left = find_checkpoint(tmp_path / "stopped")
    state = read_state(left)
    assert (state.step, state.epoch, state.finished) == (left_at, (left_at - 1) // 4, False)
    assert f"_step_{left_at:09d}_loss_" in left.name
    assert len(losses(left)) == left_at
    assert train.main(["--cfg-path", str(tmp_path / "toy.yaml")]) == 0
    assert_same_run(tmp_path / "stopped", whole)
    assert not [path for path in list_checkpoints(tmp_path / "stopped") if "_step_" in path.name]  # its epoch is done


def test_sigterm_in_the_validation_is_answered_at_once(tiny_world, tmp_path, monkeypatch):
    tiny_world.run.val_split = "test"
    whole = run(tiny_world, tmp_path)
    tiny_world.run.output_dir = str(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        validate = AffectGPTTask.validate

        def asked(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return validate(*arguments)

        patch.setattr(AffectGPTTask, "validate", asked)
        run(tiny_world, tmp_path)
    assert read_state(find_checkpoint(tmp_path / "stopped")).step == 4
    run(tiny_world, tmp_path)
    assert_same_run(tmp_path / "stopped", whole)
    assert read_state(find_checkpoint(tmp_path / "stopped")) == read_state(find_checkpoint(whole))


def test_a_checkpoint_within_an_epoch_lies_after_that_of_the_epoch_before(tiny_world, tmp_path, monkeypatch):
    sigterm_in_step(monkeypatch, 5)
    folder = run(tiny_world, tmp_path)
    names = [path.name for path in list_checkpoints(folder)]
    assert [name.split("_loss_")[0] for name in names] == ["checkpoint_000001", "checkpoint_000001_step_000000006"]
    assert find_checkpoint(folder).name == names[1]
    assert find_checkpoint(folder, epoch=1).name == names[0]
    assert [path.name for path in list_checkpoints(folder, whole_epochs=True)] == names[:1]


LEFT_OPEN = """
import sys
import torch
from torch.utils.data import DataLoader
from affect.engine.stop import ignore_signals
batches = iter(DataLoader(torch.arange(8), num_workers=2, worker_init_fn=ignore_signals))
next(batches)
sys.exit(3)
"""


def test_workers_that_are_left_at_the_end_end_with_their_process():
    """As after an error within an epoch, whose traceback keeps the loader: at exit Python waits for its workers."""
    left = subprocess.run([sys.executable, "-c", LEFT_OPEN], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (left.returncode, left.stderr) == (3, "")


def test_data_workers_outlive_a_signal_to_the_whole_group(tiny_world, tmp_path):
    """As Slurm and a terminal's Ctrl-C send it: every process of the job gets it, those that read clips as well."""
    tiny_world.run.num_workers, tiny_world.run.log_every, tiny_world.run.max_epoch = 1, 1, 200
    save_config(tiny_world, tmp_path / "toy.yaml")
    command = [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(tmp_path / "toy.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, start_new_session=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Train: data epoch: [1]  [1/4]"):
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGINT)
    process.stdout.close()
    assert process.wait() == INTERRUPTED == 130, "".join(lines)
    assert lines[-2].startswith("asked to stop: step ") and lines[-2].endswith("the same command goes on from it\n")
    assert lines[-1] == "interrupted\n" and find_checkpoint(tmp_path / "run")
