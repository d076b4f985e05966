"""Two processes of torchrun against one with twice the batch: SAM, accumulation, average and validation alike."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from affect.engine.checkpoint import list_checkpoints
from fer_runs import ROOT, history, losses, run, state, write_config

VIT = {"arch": "timm", "backbone": "test_vit", "img_size": 32}  # no batch norm, whose statistics are each process's own
SETTINGS = {
    "grad_accum_steps": 2,
    "sam": True,
    "ema": 0.5,
    "max_grad_norm": 1.0,
    "class_weight": "balanced",
    "lr": 1e-3,
}
PLAIN = {"augment": False, "mixup": 0.0, "random_erasing": 0.0}  # partners in mixup are those of a process's batch


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs one (batch 4 in one process) and two, stopped and broken (batch 2 in each of two)."""
    folder = tmp_path_factory.mktemp("runs")
    for name, batch in (("one", 4), ("two", 2), ("stopped", 2), ("broken", 2)):
        path = write_config(folder / f"{name}.yaml", model=VIT, images=PLAIN, run={**SETTINGS, "batch_size": batch})
        path.write_text(path.read_text().replace("width: 0.25", "drop_path: 0.0"))
    run(folder / "one.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(Path(__file__).parents[1] / "two_fer_processes.py"), str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def test_two_processes_train_as_one_with_twice_the_batch(runs):
    ours, theirs = history(runs / "two"), history(runs / "one")
    assert len(ours) == 3
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    assert len(losses(runs / "one")) == 6
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-5)
    one, two = (load_file(runs / name / "last.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-4)


def test_when_one_process_is_asked_to_stop_both_leave_after_the_same_step(runs):
    assert [(runs / f"code_{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert state(runs / "stopped").step == 2  # asked after the first, answered with the next


def test_a_loss_that_is_not_finite_ends_both_and_names_the_images_of_the_one_that_had_it(runs):
    errors = {(runs / f"error_{rank}").read_text() for rank in (0, 1)}
    assert len(errors) == 1
    assert re.match(r"step 0: the loss is nan on images train/\w+/\d\.png, train/\w+/\d\.png; ", errors.pop())
    assert not list_checkpoints(runs / "broken")
