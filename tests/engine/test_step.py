import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from affect.core.layouts import LAYOUTS
from affect.data.collate import Collator
from affect.data.config import RunConfig
from affect.data.dataset import TrainingSamples, open_datasets, query_tokens
from affect.data.lengths import text_lengths
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw
from affect.engine.checkpoint import find_checkpoint
from affect.engine.metrics import read_metrics
from affect.engine.step import training_step
from affect.engine.trainer import build_optimizer
from affect.models.affectgpt import build_affectgpt
from affect.tasks.affectgpt import AffectGPTTask
from train_runs import losses, run


@pytest.fixture
def parts(tiny_world):
    """A task whose model has no dropout, its samples and collator, and an accelerator on the CPU."""
    datasets = open_datasets(tiny_world, "train")
    samples = TrainingSamples(datasets, load_prompts(None), query_tokens(tiny_world.model), 1)
    torch.manual_seed(0)
    model = build_affectgpt(tiny_world.model, [LAYOUTS[tiny_world.datasets["toy"].face_or_frame]]).eval()
    return AffectGPTTask(tiny_world, model, samples), samples, Collator(model.tokenizer, 1024), Accelerator(cpu=True)


def test_accumulated_batches_give_the_step_of_one_large_batch(parts):
    """Each token weighs the same, however unevenly the answers' lengths fall to the batches."""
    task, samples, collator, accelerator = parts
    model = task.model
    draws = sorted((Draw(i, 0) for i in range(6)), key=lambda draw: len(samples[draw].answer))
    whole = collator([samples[draw] for draw in draws])
    halves = [collator([samples[draw] for draw in half]) for half in (draws[:3], draws[3:])]
    assert len({task.size(batch).weight for batch in halves}) == 2  # the halves are uneven
    start = {name: weight.detach().clone() for name, weight in model.trainable().items()}
    gradients, reports = [], []
    for batches in ([whole], halves):
        optimizer = torch.optim.SGD(model.trainable().values(), lr=1.0)
        reports.append(training_step(task, model, optimizer, batches, accelerator))
        gradients.append({name: start[name] - weight.detach() for name, weight in model.trainable().items()})
        model.load_state_dict(start, strict=False)
    assert reports[0].loss == pytest.approx(reports[1].loss, abs=1e-5)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-3)
    assert (reports[1].size.samples, reports[1].size.weight) == (6, task.size(whole).weight)
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5 * largest.item(), msg=name)


def test_a_loss_that_is_not_finite_moves_nothing(parts):
    task, samples, collator, accelerator = parts
    batch = collator([samples[Draw(0, 0)]])
    batch.features = {stream: features * float("nan") for stream, features in batch.features.items()}
    optimizer = build_optimizer(list(task.model.trainable().values()), RunConfig(init_lr=1.0))
    before = {name: weight.detach().clone() for name, weight in task.model.trainable().items()}
    report = training_step(task, task.model, optimizer, [batch], accelerator)
    assert not np.isfinite(report.loss)
    assert not report.moved
    assert all((task.model.trainable()[name] == weight).all() for name, weight in before.items())


def test_a_loader_that_pins_memory_pins_every_tensor_of_a_batch(parts, monkeypatch):
    _, samples, collator, _ = parts
    batch = collator([samples[Draw(0, 0)]])
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    there = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert len(pinned) == 4 + sum(map(len, (batch.features, batch.masks, batch.rows, batch.places)))
    assert there.names == batch.names
    assert there.input_ids is not batch.input_ids
    assert all(torch.equal(there.features[stream], array) for stream, array in batch.features.items())


def test_padding_is_counted(parts):
    task, samples, collator, accelerator = parts
    batch = collator([samples[Draw(i, 0)] for i in range(8)])
    optimizer = build_optimizer(list(task.model.trainable().values()), RunConfig())
    size = training_step(task, task.model, optimizer, [batch], accelerator).size
    assert size.padding / size.cells == pytest.approx(1 - batch.attention_mask.float().mean().item())
    assert 0 < size.padding < size.cells == size.padding + size.tokens


def test_lengths_known_beforehand_are_those_of_the_samples(parts):
    _, samples, _, _ = parts
    for cycle in (0, 1):
        drawn = [samples[Draw(i, cycle)] for i in range(len(samples))]
        expected = [len(sample.clip.subtitle.encode()) + len(sample.answer.encode()) for sample in drawn]
        assert text_lengths(samples)(cycle).tolist() == expected
    assert len(set(text_lengths(samples)(0))) > 2  # descriptions and labels


def test_buckets_leave_less_padding_and_the_log_says_how_much(tiny_world, tmp_path, caplog):
    table = pd.read_csv(tmp_path / "clips.csv")
    table["subtitle"] = ["so " * (1 + 40 * (i % 4)) for i in range(len(table))]
    table.to_csv(tmp_path / "clips.csv", index=False)
    tiny_world.run.max_epoch, tiny_world.run.batch_size_train = 2, 2
    with caplog.at_level("INFO"):
        mixed = run(tiny_world, tmp_path)
        tiny_world.run.output_dir = str(tmp_path / "bucketed")
        bucketed = run(tiny_world, tmp_path, "run.bucket_by_length=True")
    shares = [np.mean([step["padding"] for step in read_metrics(folder)[0]]) for folder in (mixed, bucketed)]
    assert shares[1] < 0.6 * shares[0]
    assert sum("mean loss" in line and ", padding " in line for line in caplog.messages) == 4


def test_activations_computed_anew_give_the_same_losses(tiny_world, tmp_path):
    kept = losses(find_checkpoint(run(tiny_world, tmp_path)))
    tiny_world.run.output_dir = str(tmp_path / "anew")
    anew = losses(find_checkpoint(run(tiny_world, tmp_path, "run.gradient_checkpointing=True")))
    np.testing.assert_array_equal(anew, kept)
