"""Runs of train.py that tests start and look at."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

import affect.engine.trainer
from affect.cli import train
from affect.data.config import Config, save_config
from affect.engine.checkpoint import find_checkpoint, read_state
from affect.engine.metrics import read_metrics

ROOT = Path(__file__).parents[1]


def run(config: Config, tmp_path: Path, *options: str) -> Path:
    """Train in this process and return the run's folder."""
    save_config(config, tmp_path / "toy.yaml")
    train.main(["--cfg-path", str(tmp_path / "toy.yaml"), *(["--options", *options] if options else [])])
    return Path(config.run.output_dir)


def losses(checkpoint: Path) -> np.ndarray:
    """Return the loss of every step up to a checkpoint."""
    steps, _ = read_metrics(checkpoint.parent)
    return np.array([step["loss"] for step in steps if step["step"] <= read_state(checkpoint).step])


def assert_same_run(folder: Path, other: Path) -> None:
    """Hold that two runs end in the same losses and weights, to the last bit."""
    ours, theirs = find_checkpoint(folder), find_checkpoint(other)
    assert ours.name == theirs.name
    np.testing.assert_array_equal(losses(ours), losses(theirs))
    for part in ("fusion.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(ours / part), load_file(theirs / part)
        assert one.keys() == two.keys()
        assert all((one[name] == two[name]).all() for name in two), part


def kill_at(config: Config, tmp_path: Path, line: str) -> None:
    """Train in a process of its own and send it SIGKILL when it has logged a line that starts so."""
    save_config(config, tmp_path / "toy.yaml")
    command = [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(tmp_path / "toy.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    for found in process.stdout:
        if found.startswith(line):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


def sigterm_in_step(monkeypatch, number: int) -> None:
    """Let SIGTERM come while the step of this number (from 0) is at work."""
    step, count = affect.engine.trainer.training_step, iter(range(10**6))

    def interrupted(*arguments, **settings):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **settings)

    monkeypatch.setattr(affect.engine.trainer, "training_step", interrupted)
