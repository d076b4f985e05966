"""The moving average of weights."""

import pytest
import torch
from torch import nn

import affect.engine.trainer
from affect.engine.average import WeightAverage
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from toy_task import ToyTask, network, toy_losses, toy_run, train_toy


def moved(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape))


def test_the_average_follows_its_definition_and_forgets_the_start_soon():
    weight = nn.Parameter(torch.randn(4, 4))
    average, expected = WeightAverage([weight], 0.9), weight.detach().clone()
    for n in range(1, 120):
        moved(weight)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight.detach()
        average.update()
        torch.testing.assert_close(average.means[0], expected)
    assert decay == 0.9


def test_the_network_has_it_while_entered_and_its_own_weights_after_to_the_bit():
    weight = nn.Parameter(torch.randn(4, 4))
    average, start = WeightAverage([weight], 0.5), weight.detach().clone()
    moved(weight)
    now = weight.detach().clone()
    with pytest.raises(RuntimeError), average.in_place():
        assert torch.equal(weight, start)
        assert torch.equal(average.means[0], now)
        raise RuntimeError
    assert torch.equal(weight, now)
    assert torch.equal(average.means[0], start)
    assert weight.requires_grad and not average.means[0].requires_grad


def test_the_average_is_validated_and_kept_and_a_resumed_run_goes_on_to_the_bit(tmp_path):
    settings = {"ema": 0.8, "keep_checkpoints": 9, "max_epoch": 3}
    whole = train_toy(toy_run(tmp_path / "whole", **settings))
    first, _, last = list_checkpoints(tmp_path / "whole")
    assert read_state(last).updates == 9
    kept = ToyTask(toy_run(tmp_path).run)
    kept.load(last)
    assert kept.validate(kept.model, None, None)["val_loss"] == read_state(last).val_loss
    assert not torch.equal(kept.model[1].weight, whole.model[1].weight)
    assert torch.equal(kept.model[2].running_mean, whole.model[2].running_mean)  # buffers are the network's own
    on = train_toy(toy_run(tmp_path / "on", resume_ckpt_path=str(first), **settings))
    assert toy_losses(tmp_path / "on") == toy_losses(tmp_path / "whole")
    assert torch.equal(on.model[1].weight, whole.model[1].weight)
    assert read_state(find_checkpoint(tmp_path / "on")) == read_state(last)


def test_a_run_may_take_up_an_average_or_lay_it_down(tmp_path):
    train_toy(toy_run(tmp_path / "without", max_epoch=1))
    train_toy(toy_run(tmp_path / "with", max_epoch=1, ema=0.8))
    weights = [find_checkpoint(tmp_path / name) for name in ("without", "with")]
    taken = train_toy(toy_run(tmp_path / "a", ema=0.8, resume_ckpt_path=str(weights[0])))
    laid = train_toy(toy_run(tmp_path / "b", resume_ckpt_path=str(weights[1])))
    assert torch.equal(taken.model[1].weight, laid.model[1].weight)  # the average itself changes no step
    assert read_state(find_checkpoint(tmp_path / "a")).updates == 3


def test_the_average_does_not_advance_where_the_scaler_skipped_the_step(tmp_path, monkeypatch):
    skipped, step = [1, 2], affect.engine.trainer.training_step

    def skipping(task, model, optimizer, window, accelerator, number, *rest):
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126 if number in skipped else 1.0)
        return step(task, model, optimizer, window, accelerator, number, *rest)

    monkeypatch.setattr(affect.engine.trainer, "training_step", skipping)
    config = toy_run(tmp_path / "run", ema=0.8, max_epoch=1)
    task = ToyTask(config.run, network().float())
    task.model.register_forward_pre_hook(lambda module, given: given[0].float())
    task.model[5].weight.register_hook(lambda gradient: gradient * 1e6)
    train_toy(config, task)
    assert read_state(find_checkpoint(tmp_path / "run")).updates == 1
