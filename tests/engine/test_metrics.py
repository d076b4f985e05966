"""metrics.jsonl: what a step's line says, and that it is only ever appended to, and cut back where a run goes on."""

import json
from dataclasses import replace

import pytest
import torch

import affect.engine.metrics
from affect.engine.checkpoint import TrainState, list_checkpoints, read_state
from affect.engine.metrics import FILE, Metrics, flops_per_token, numbers_of, peak_flops, read_metrics
from affect.engine.step import StepReport
from affect.engine.task import Size
from toy_task import network, toy_losses, toy_run, train_toy

REPORT = StepReport(2.0, {"acc": 0.5}, 1.5, [], Size(9, 4, 90, 100, 10), False, True, seconds=2.0)
CPU = torch.device("cpu")


def test_a_steps_line_has_speeds_padding_gradient_and_memory():
    numbers = numbers_of(REPORT, 7, 2, 1e-3, 0.0, CPU)
    memory = numbers.pop("memory_mib")
    assert memory > 10
    assert numbers == {
        "step": 7,
        "epoch": 2,
        "lr": 1e-3,
        "loss": 2.0,
        "acc": 0.5,
        "padding": 0.1,
        "grad_norm": 1.5,
        "samples_per_s": 2.0,
        "tokens_per_s": 45.0,
        "mfu": None,
    }


def test_on_a_card_that_is_known_the_share_of_its_peak_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(affect.engine.metrics, "peak_memory", lambda device: 1.0)
    card = torch.device("cuda")
    assert peak_flops(card) == 989e12
    assert numbers_of(REPORT, 1, 1, 1e-3, 989e12, card)["mfu"] == 0.5
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Unheard-of")
    assert numbers_of(REPORT, 1, 1, 1e-3, 989e12, card)["mfu"] is None
    assert peak_flops(CPU) == 0


def test_a_trained_weight_costs_six_operations_a_token_and_a_frozen_one_four():
    model = network()
    model[1].requires_grad_(False)
    frozen = 12 * 8 + 8
    assert flops_per_token(model) == 6 * sum(weight.numel() for weight in model.parameters()) - 2 * frozen


def test_a_run_writes_a_line_a_step_and_a_line_an_epoch(tmp_path):
    train_toy(toy_run(tmp_path / "run"))
    steps, epochs = read_metrics(tmp_path / "run")
    assert [(line["step"], line["epoch"]) for line in steps] == [(k, 1 + (k > 3)) for k in range(1, 7)]
    assert steps[0].keys() >= {"lr", "loss", "acc", "grad_norm", "samples_per_s", "memory_mib"}
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 3), (2, 6)]
    (_, last) = list_checkpoints(tmp_path / "run")
    assert epochs == read_state(last).history
    assert epochs[1]["train_loss"] == pytest.approx(sum(line["loss"] for line in steps[3:]) / 3)


def test_a_run_that_goes_on_cuts_off_what_came_after_its_checkpoint_and_appends(tmp_path):
    train_toy(toy_run(tmp_path / "whole"))
    train_toy(toy_run(tmp_path / "run"))
    _, second = list_checkpoints(tmp_path / "run")
    for path in second.iterdir():
        path.unlink()
    second.rmdir()
    text = (tmp_path / "run" / FILE).read_text()
    (tmp_path / "run" / FILE).write_text(text + '{"step": 7, "epo')  # killed while it wrote
    kept = text[: text.index('{"step": 4,')]
    train_toy(toy_run(tmp_path / "run"))
    assert (tmp_path / "run" / FILE).read_text().startswith(kept)
    assert toy_losses(tmp_path / "run") == toy_losses(tmp_path / "whole")
    assert len(read_metrics(tmp_path / "run")[1]) == 2


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (TrainState(0, 0, 0.0), 0),
        (TrainState(0, 1, 0.0), 1),
        (TrainState(0, 2, 0.0), 2),  # stopped within the validation: the epoch's line is to come again
        (TrainState(1, 2, 0.0), 3),
        (TrainState(1, 3, 0.0), 4),
    ],
)
def test_what_came_after_a_state_is_cut_off(tmp_path, state, kept):
    lines = [{"step": 1, "epoch": 1, "loss": 1.0}, {"step": 2, "epoch": 1, "loss": 1.0}, {"epoch": 1, "step": 2}]
    lines += [{"step": 3, "epoch": 2, "loss": 1.0}, {"epoch": 2, "step": 3}]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    Metrics(tmp_path, tmp_path / "checkpoint", replace(state)).close()
    assert [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()] == lines[:kept]
