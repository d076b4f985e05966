"""Two processes of torchrun against one: copied weights (DDP), divided weights (FSDP), and leaving together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from affect.data.config import load_config, save_config
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.models.affectgpt import AffectGPT
from tiny_world import save_tiny_world
from toy_answers import load_answerer
from train_runs import ROOT, losses
from two_processes import run, without_dropout

STEPS = 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_llm):
    """Folder of the runs one (batch 2 in one process) and ddp, stopped, broken, sharded (batch 1 in each of two).

    Batches of one clip, so that now and then a process has no clip with a face, or with sound.
    """
    folder = tmp_path_factory.mktemp("runs")
    config = save_tiny_world(folder, tiny_llm)
    config.datasets["toy"].modality_dropout = 0.0
    config.run.max_epoch, config.run.iters_per_epoch, config.run.log_every = 2, STEPS // 2, 1
    config.run.max_grad_norm, config.run.bucket_by_length, config.run.val_split = 1.0, True, "test"
    for name, batch in (("one", 2), ("ddp", 1), ("stopped", 1), ("broken", 1), ("sharded", 1)):
        config.run.output_dir, config.run.batch_size_train = str(folder / name), batch
        save_config(config, folder / f"{name}.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AffectGPT, "train", without_dropout)
        run(folder / "one.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(Path(__file__).parents[1] / "two_processes.py"), str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (folder / "log").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("way", ["ddp", "sharded"])
def test_two_processes_have_the_losses_of_one_with_twice_the_batch(runs, way):
    """Cross-entropy is a mean over the answer tokens of both processes, whose numbers differ from step to step."""
    one, two = (find_checkpoint(runs / name) for name in ("one", way))
    assert len(losses(two)) == STEPS
    np.testing.assert_allclose(losses(two), losses(one), rtol=0, atol=1e-5)
    assert read_state(two).val_loss == pytest.approx(read_state(one).val_loss, abs=1e-5)
    assert read_state(two).best_epoch == read_state(one).best_epoch


def test_one_process_writes(runs):
    log = (runs / "log").read_text()
    assert log.count("epoch 2 done") == 2  # of ddp and of sharded
    assert log.count("asked to stop: step ") == 1


def test_when_one_process_is_asked_to_stop_both_leave_after_the_same_step(runs):
    (left,) = list_checkpoints(runs / "stopped")
    assert [(runs / f"code_{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    steps = read_state(left).step
    assert 1 <= steps < STEPS // 2
    np.testing.assert_allclose(losses(left), losses(find_checkpoint(runs / "one"))[:steps], rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_ends_both_and_names_the_clips_of_the_one_that_had_it(runs):
    errors = {(runs / f"error_{rank}").read_text() for rank in (0, 1)}
    assert len(errors) == 1
    assert re.fullmatch(r"step 0: the loss is nan on clips c\d; .*", errors.pop())
    assert not list_checkpoints(runs / "broken")


def test_a_checkpoint_of_divided_weights_is_like_any_other(runs):
    one, two = (find_checkpoint(runs / name) for name in ("one", "sharded"))
    for part in ("fusion.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(two / part), load_file(one / part)
        assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}
    config = load_config(runs / "sharded.yaml")
    answerer = load_answerer(config, two, config.datasets["toy"].face_or_frame)
    stored = load_file(two / "fusion.safetensors")
    assert (answerer.model.state_dict()["fusion.proj.weight"] == stored["fusion.proj.weight"]).all()


def test_a_run_of_divided_weights_goes_on_in_one_process(runs, monkeypatch):
    monkeypatch.setattr(AffectGPT, "train", without_dropout)
    first = list_checkpoints(runs / "sharded")[0]
    config = load_config(runs / "one.yaml", [f"run.resume_ckpt_path={first}", f"run.output_dir={runs / 'on'}"])
    save_config(config, runs / "on.yaml")
    run(runs / "on.yaml")
    np.testing.assert_allclose(
        losses(find_checkpoint(runs / "on")), losses(find_checkpoint(runs / "one")), rtol=0, atol=1e-5
    )
