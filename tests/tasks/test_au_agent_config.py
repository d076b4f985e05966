"""Settings of AU agent training: users' files as they are, every fault at once."""

import logging
from pathlib import Path

import pytest
import torch
import yaml

from affect.core.config import ConfigError, parse, read_yaml
from affect.engine.launch import start_accelerator
from affect.tasks.au_agent_config import AgentConfig

SHIPPED = Path(__file__).resolve().parents[2] / "train_configs/au_agent_lora.yaml"
LEAST = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o"}


def read(path, options=()):
    return parse(AgentConfig, read_yaml(path), str(path), options)


def _load(folder, **settings):
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(LEAST | settings))
    return read(path)


def test_users_file_keeps_its_meaning(shared, caplog):
    caplog.set_level(logging.INFO)
    config = read(shared / "goldens/user_configs/au_agent_lora_config.yaml")
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target) == (64, 128, 0.05, ["all"])
    assert (config.dataset, config.cutoff_len, config.init_lr) == (["au_instruction_dataset"], 1024, 5e-5)
    assert (config.eval_strategy, config.eval_steps, config.save_every, config.warmup_steps) == ("steps", 500, 500, 100)
    assert (config.bf16, config.amp, config.gradient_checkpointing, config.load_best_model_at_end) == (True,) * 4
    assert (config.scheduler, config.max_epoch, config.keep_checkpoints, config.log_every) == ("cosine", 3, 3, 10)
    assert (config.batch_size_train, config.gradient_accumulation_steps, config.weight_decay) == (4, 4, 0)
    keys = {record.message.split(": ")[1].removesuffix(" is not needed") for record in caplog.records}
    assert keys == {
        "trust_remote_code",
        "template",
        "preprocessing_num_workers",
        "ddp_find_unused_parameters",
    }


def test_shipped_file_trains_as_that_of_users(shared):
    users, ours = (
        read(file).model_dump() for file in (shared / "goldens/user_configs/au_agent_lora_config.yaml", SHIPPED)
    )
    other = {key for key in ours if ours[key] != users[key]}
    assert other == {
        "model_name_or_path",
        "dataset",
        "dataset_dir",
        "eval_dataset",
        "output_dir",
        "overwrite_output_dir",
        "group_by_length",
        "trackers",
    }


def test_what_is_not_said_is_as_llamafactory_has_it(tmp_path):
    config = _load(tmp_path)
    assert (config.init_lr, config.max_epoch, config.scheduler, config.warmup_lr) == (5e-5, 3, "linear", 0)
    assert (config.batch_size_train, config.gradient_accumulation_steps, config.per_device_eval_batch_size) == (8, 1, 8)
    assert (config.weight_decay, config.adam_beta1, config.adam_beta2, config.max_grad_norm) == (0, 0.9, 0.999, 1)
    assert (config.log_every, config.save_every, config.eval_strategy, config.seed) == (500, 500, "no", 42)
    assert (config.lora_rank, config.lora_alpha, config.cutoff_len, config.keep_checkpoints) == (8, None, 2048, None)


def test_options_override_the_file():
    config = read(SHIPPED, ["learning_rate=1e-3", "dataset=a, b"])
    assert config.init_lr == 1e-3 and config.dataset == ["a", "b"]


def test_every_fault_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, lora_rnak=8, learning_rate="fast", stage="dpo", dataset="", cutoff_len=0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and all(line.startswith(f"{tmp_path / 'agent.yaml'}: ") for line in lines)
    assert any("lora_rnak: unknown key; did you mean lora_rank?" in line for line in lines)
    assert any("stage: " in line and "'sft'" in line and "found 'dpo'" in line for line in lines)


def test_required_keys_are_named(tmp_path):
    (tmp_path / "agent.yaml").write_text("stage: sft\n")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "agent.yaml")
    named = {line.split(": ")[1] for line in str(caught.value).splitlines()}
    assert named == {"output_dir", "model_name_or_path", "dataset"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_best_model_at_end": True}, "needs equal eval_strategy and save_strategy, found no and steps"),
        (
            {"load_best_model_at_end": True, "evaluation_strategy": "steps", "save_steps": 500, "eval_steps": 300},
            "save_steps 500 to be a multiple of eval_steps 300",
        ),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both True"),
        ({"eval_dataset": "e", "val_size": 0.1}, "eval_dataset and val_size are both given"),
        ({"report_to": "mlflow"}, "trackers.0: .*'tensorboard' or 'wandb', found 'mlflow'"),
        ({"early_stop": 2}, "early_stop needs an eval_strategy"),
        ({"learning_rate": 1e-3, "lr": 1e-4}, "found both .*learning_rate.* and .*lr.*expected one"),
    ],
)
def test_contradictions_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, **settings)


def test_bare_no_is_a_strategy(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(LEAST) + "eval_strategy: no\nsave_strategy: no\n")
    config = read(path)
    assert (config.eval_strategy, config.save_strategy) == ("no", "no")


def test_half_precision_without_a_gpu_is_float32_with_a_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    caplog.set_level(logging.INFO)
    for half in ("bf16", "fp16"):
        caplog.clear()
        accelerator = start_accelerator(_load(tmp_path, **{half: True}))
        assert accelerator.mixed_precision == "no"
        assert caplog.messages == ["no GPU is used: training on the CPU in float32"]


def test_tracker_that_is_not_installed_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("affect.tasks.au_agent_config.find_spec", lambda name: None)
    caplog.set_level(logging.INFO)
    assert _load(tmp_path, report_to="tensorboard").trackers == []
    assert "tensorboard is not installed" in caplog.text


def _settled(folder, batches=100, **given):
    config = _load(folder, **given)
    return config.settled(config.steps(batches))


def test_warm_up_is_a_number_of_steps_or_a_share(tmp_path):
    ways = [{"warmup_steps": 7, "warmup_ratio": 0.5}, {"warmup_ratio": 0.1}, {"lr_scheduler_type": "constant"}]
    ways.append({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3})
    ways[2]["warmup_steps"] = 9  # as with transformers, constant is constant from the start
    assert [_settled(tmp_path, **given).warmup_steps for given in ways] == [7, 30, 0, 3]


def test_steps_are_counted_as_transformers_counts_them(tmp_path):
    """A pass over 10 batches, 3 a step, has 4 steps; the run ends within a pass where num_train_epochs does."""
    for given, total in (
        ({}, 12),
        ({"num_train_epochs": 0.5}, 2),
        ({"num_train_epochs": 1.3}, 6),
        ({"max_steps": 5}, 5),
    ):
        steps = _load(tmp_path, gradient_accumulation_steps=3, **given).steps(10)
        assert (steps.of_pass, steps.run) == (4, total)


@pytest.mark.parametrize(
    ("given", "epoch", "save_every", "kept"),
    [
        ({}, 100, None, 300),
        ({"save_steps": 40}, 40, None, 300),
        ({"save_strategy": "no"}, 300, None, 1),
        ({"save_strategy": "epoch", "save_total_limit": 2}, 100, None, 2),
        ({"eval_strategy": "steps", "eval_steps": 50, "save_steps": 20}, 50, 20, 300),
        ({"eval_strategy": "steps", "logging_steps": 50}, 50, None, 300),
        ({"eval_strategy": "epoch", "save_steps": 30, "save_total_limit": 1}, 100, 30, 1),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "no"}, 10, None, 1),
    ],
)
def test_when_is_evaluated_and_saved(tmp_path, given, epoch, save_every, kept):
    config = _load(tmp_path, **({"save_steps": 100} | given))
    steps = config.steps(100)
    settled = config.settled(steps)
    assert (steps.epoch, settled.save_every, settled.keep_checkpoints) == (epoch, save_every, kept)
