"""Which settings may change when a run goes on, and which make it another run: one rule for all tasks."""

import logging

import pytest

from affect.core.config import RunSettings, save_yaml
from affect.data.config import Config, DatasetConfig
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.engine.loop import train
from affect.engine.run_folder import differing_keys
from affect.expressions.config import FerConfig
from affect.tasks.au_agent_config import AgentConfig
from toy_task import ToyTask, toy_losses, toy_run, train_toy

SPEED = {"amp": True, "compile": True, "fsdp": True, "gradient_checkpointing": True, "num_workers": 9, "early_stop": 3}
SPEED |= {"max_epoch": 99, "log_every": 7, "trackers": ["tensorboard"], "visualize_training": False}


@pytest.mark.parametrize("task", ["affectgpt", "au_agent", "expressions"])
def test_every_task_has_the_same_rule(tmp_path, task):
    if task == "au_agent":
        given = {"model_name_or_path": "x", "dataset": "a", "eval_dataset": "b", "eval_strategy": "epoch"}
        config = run = AgentConfig(output_dir="run", **given)
        more, another = {"bf16": True}, ["lora_rank", "seed"]
    elif task == "affectgpt":
        config = Config(datasets={"toy": DatasetConfig(face_or_frame="faceonly")})
        more, another, run = {"val_split": "val"}, ["model.num_multi_query_token", "run.seed"], config.run
    else:
        config = FerConfig()
        more, another, run = {}, ["model.width", "run.seed"], config.run
    save_yaml(config.model_dump(mode="json"), tmp_path / "config.yaml")
    for key, value in (SPEED | more).items():
        setattr(run, key, value)
    assert differing_keys(config, tmp_path) == []
    for key in another:
        place, _, name = key.rpartition(".")
        setattr(getattr(config, place) if place else config, name, 3)
    assert differing_keys(config, tmp_path) == another


def test_a_run_goes_on_with_settings_of_speed_changed_and_says_so(tmp_path, caplog):
    train_toy(toy_run(tmp_path / "run", max_epoch=1, scheduler="constant"))
    caplog.set_level(logging.INFO)
    changed = {"gradient_checkpointing": True, "amp": True, "fsdp": True, "num_workers": 1, "early_stop": 5}
    train_toy(toy_run(tmp_path / "run", scheduler="constant", **changed))
    assert "run goes on with run.max_epoch 2, before 1" in caplog.text
    assert "run goes on with run.gradient_checkpointing True, before False" in caplog.text
    train_toy(toy_run(tmp_path / "unbroken", scheduler="constant"))
    assert toy_losses(tmp_path / "run") == toy_losses(tmp_path / "unbroken")


def test_a_setting_that_changes_the_mathematics_begins_a_new_folder_and_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)

    def toy(**settings):
        config = toy_run(tmp_path, **settings)
        config.run.output_dir = None
        train_toy(config)
        return sorted(path.name for path in (tmp_path / "output" / "toy").iterdir())

    (first,) = toy(max_epoch=1)
    assert toy(max_epoch=2) == [first]
    broken = toy_run(tmp_path, seed=1)
    broken.run.output_dir = None
    with pytest.raises(ZeroDivisionError):
        train(broken, "toy.yaml", lambda *_: 1 / 0)
    assert "a new run begins" not in caplog.text
    assert toy(max_epoch=3, seed=1)[0] == first
    assert f"{first} has other settings (run.seed), so a new run begins" in caplog.text
    assert len(toy(max_epoch=1, seed=1)) == 3  # shorter than what is there: a run of its own


def test_more_patience_lets_a_run_go_on_that_early_stop_ended(tmp_path):
    def epochs(scores, **settings):
        config = toy_run(tmp_path / "run", max_epoch=5, **settings)
        train_toy(config, ToyTask(config.run, scores=scores))
        return read_state(find_checkpoint(tmp_path / "run")).epoch

    assert epochs([1.0, 2.0, 3.0], early_stop=1) == 2
    before = list_checkpoints(tmp_path / "run")
    assert epochs([0.5] * 5, early_stop=1) == 2 and list_checkpoints(tmp_path / "run") == before
    assert epochs([0.5, 2.0, 3.0], early_stop=2) == 5


def test_settings_that_may_change_are_settings():
    assert RunSettings.passing <= RunSettings.model_fields.keys()
