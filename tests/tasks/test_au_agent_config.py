"""Settings of AU agent training: users' files as they are, every fault at once."""

import logging
from pathlib import Path

import pytest
import torch
import yaml

from affect.core.typed_yaml import ConfigError
from affect.tasks.au_agent import training_arguments
from affect.tasks.au_agent_config import load_agent_config

SHIPPED = Path(__file__).resolve().parents[2] / "train_configs/au_agent_lora.yaml"
LEAST = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o"}


def _load(folder, **settings):
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(LEAST | settings))
    return load_agent_config(path)


def test_users_file_keeps_its_meaning(shared, caplog):
    caplog.set_level(logging.INFO)
    config = load_agent_config(shared / "goldens/user_configs/au_agent_lora_config.yaml")
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target) == (64, 128, 0.05, ["all"])
    assert (config.dataset, config.cutoff_len, config.learning_rate) == (["au_instruction_dataset"], 1024, 5e-5)
    assert (config.eval_strategy, config.eval_steps, config.save_steps, config.warmup_steps) == ("steps", 500, 500, 100)
    assert (config.bf16, config.gradient_checkpointing, config.load_best_model_at_end) == (True, True, True)
    keys = {record.message.split(": ")[1].removesuffix(" is not needed") for record in caplog.records}
    assert keys == {"trust_remote_code", "template", "preprocessing_num_workers"}


def test_shipped_file_trains_as_that_of_users(shared):
    users = load_agent_config(shared / "goldens/user_configs/au_agent_lora_config.yaml").trainer_settings()
    ours = load_agent_config(SHIPPED)
    assert ours.trainer_settings() == users | {"output_dir": ours.output_dir, "ddp_find_unused_parameters": None}
    assert (ours.lora_rank, ours.lora_alpha, ours.lora_target, ours.bf16) == (64, 128, ["all"], True)


def test_options_override_the_file():
    config = load_agent_config(SHIPPED, ["learning_rate=1e-3", "dataset=a, b"])
    assert config.learning_rate == 1e-3 and config.dataset == ["a", "b"]


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
        load_agent_config(tmp_path / "agent.yaml")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "output_dir",
        "model_name_or_path",
        "dataset",
    ]


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
        ({"report_to": "mlflow"}, "report_to is mlflow"),
    ],
)
def test_contradictions_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, **settings)


def test_bare_no_is_a_strategy(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(LEAST) + "eval_strategy: no\nsave_strategy: no\n")
    config = load_agent_config(path)
    assert (config.eval_strategy, config.save_strategy) == ("no", "no")


def test_half_precision_without_a_gpu_is_float32_with_a_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    caplog.set_level(logging.INFO)
    for half in ("bf16", "fp16"):
        caplog.clear()
        arguments = training_arguments(_load(tmp_path, output_dir=str(tmp_path), **{half: True}))
        assert not arguments.bf16 and not arguments.fp16
        assert caplog.messages == ["no GPU: training on the CPU in float32"]


def test_tracker_that_is_not_installed_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    caplog.set_level(logging.INFO)
    arguments = training_arguments(_load(tmp_path, output_dir=str(tmp_path), report_to="tensorboard"))
    assert arguments.report_to == [] and "tensorboard is not installed" in caplog.text


def test_warm_up_is_a_number_of_steps_or_a_share(tmp_path):
    steps = [
        training_arguments(_load(tmp_path, output_dir=str(tmp_path), **given)).warmup_steps
        for given in ({"warmup_steps": 7, "warmup_ratio": 0.5}, {"warmup_ratio": 0.1})
    ]
    assert steps == [7, 0.1]
