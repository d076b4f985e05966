"""YAML to typed settings: options, spellings, tasks, and faults in one line each."""

import logging
from typing import ClassVar

import pytest
from pydantic import Field

from affect.core.config import ConfigError, RunSettings, Section, also, parse, read_yaml, task_name


class Model(Section):
    width: float = 1.0
    aliases: ClassVar = also(width="size breadth")
    not_needed: ClassVar = {"old": "it is gone"}


class Whole(Section):
    task: str = "affectgpt"
    model: Model = Field(default_factory=Model)
    parts: dict[str, Model] = Field(default_factory=dict)
    run: RunSettings = Field(default_factory=RunSettings)
    aliases: ClassVar = also(run="run_cfg")
    flat_options: ClassVar = True


@pytest.mark.parametrize(
    ("text", "found"), [("- a", "found list"), ("# all out", "found an empty file"), ("a: [", "cannot be read")]
)
def test_files_that_hold_no_settings_are_refused(tmp_path, text, found):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=found) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: expected") and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "gone.yaml")


def test_options_are_set_at_any_depth_over_every_spelling():
    content = {"model": {"size": 2.0}, "run_cfg": {"lr": 0.5, "epochs": 3}, "parts": {"a": None}}
    options = ["model.breadth=3", "run.init_lr=2.0e-1", "parts.a.size=4", "parts.b.width=5", "run_cfg.seed=7"]
    config = parse(Whole, content, "x.yaml", options)
    assert (config.model.width, config.run.init_lr, config.run.max_epoch, config.run.seed) == (3.0, 0.2, 3, 7)
    assert {name: part.width for name, part in config.parts.items()} == {"a": 4.0, "b": 5.0}
    assert content == {"model": {"size": 2.0}, "run_cfg": {"lr": 0.5, "epochs": 3}, "parts": {"a": None}}


def test_an_option_without_a_section_goes_to_the_one_that_knows_it():
    config = parse(Whole, {}, "x.yaml", ["size=2", "lr=0.5", "no_amp=True"])
    assert (config.model.width, config.run.init_lr, config.run.amp) == (2.0, 0.5, False)
    with pytest.raises(ConfigError, match=r"^--options widht=1: unknown key; did you mean width\?"):
        parse(Whole, {}, "x.yaml", ["widht=1"])


@pytest.mark.parametrize(
    ("option", "message"),
    [("a", "expected key=value"), ("=1", "expected key=value"), ("task.b=1", "task is no section")],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ConfigError, match=f"^--options {option}: {message}"):
        parse(Whole, {"task": "affectgpt"}, "x.yaml", [option])


def test_options_that_spell_one_setting_in_two_ways_are_refused():
    assert parse(Whole, {}, "x.yaml", ["run.seed=1", "run.seed=2"]).run.seed == 2
    with pytest.raises(ConfigError, match=r"found both run.max_epoch and run_cfg.epochs, expected one"):
        parse(Whole, {}, "x.yaml", ["run.max_epoch=2", "run.seed=1", "run_cfg.epochs=3"])


def test_every_fault_is_told_at_once_with_key_finding_and_nearest_known_key():
    content = {"model": {"width": "fast", "wdth": 1, "xyz": 2}, "run": {"lr": 1.0, "init_lr": 2.0}, "images": {}}
    with pytest.raises(ConfigError) as caught:
        parse(Whole, content, "f.yaml")
    lines = sorted(str(caught.value).splitlines())
    assert lines == [
        "f.yaml: found both run.lr and run.init_lr, expected one; they are the same setting with two values",
        "f.yaml: images: a key of task expressions, in a file of task affectgpt; leave one task",
        "f.yaml: model.wdth: unknown key; did you mean width?",
        lines[3],
        "f.yaml: model.xyz: unknown key; known keys: width",
    ]
    assert lines[3].startswith("f.yaml: model.width: input should be a valid number") and lines[3].endswith("'fast'")


def test_one_value_under_two_spellings_is_no_fault():
    assert parse(Whole, {"run": {"lr": 1.0, "learning_rate": 1.0}}, "x").run.init_lr == 1.0


@pytest.mark.parametrize("run", [3, "fast", [1]])
def test_a_section_that_is_none_is_a_sentence(run):
    with pytest.raises(ConfigError, match=r"^x.yaml: run: input should be a valid dictionary"):
        parse(Whole, {"run_cfg": run}, "x.yaml")
    with pytest.raises(ConfigError, match=r"--options run_cfg.seed=1: run_cfg is no section"):
        parse(Whole, {"run": run}, "x.yaml", ["run_cfg.seed=1"])


def test_keys_without_use_leave_with_a_reason(caplog):
    caplog.set_level(logging.INFO)
    content = {"model": {"old": 1, "width": 2}}
    assert parse(Whole, content, "f.yaml").model.width == 2.0
    assert caplog.messages == ["f.yaml: model.old is not needed: it is gone"]
    assert content == {"model": {"old": 1, "width": 2}}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({}, "affectgpt"),
        ({"stage": "sft"}, "au_agent"),
        ({"task": "fer"}, "expressions"),
        ({"task": "expressions"}, "expressions"),
        ({"task": "affectgpt", "stage": "sft"}, "affectgpt"),
        ({"run": {"task": "video_text_pretrain"}}, "affectgpt"),
    ],
)
def test_the_task_of_a_file(content, name):
    assert task_name(content, "x.yaml") == name


def test_an_unknown_task_is_one_sentence():
    with pytest.raises(ConfigError, match=r"^x.yaml: task: expected affectgpt, .* \(fer\), found 'video'$"):
        task_name({"task": "video"}, "x.yaml")
    with pytest.raises(ConfigError, match=r"^x.yaml: task: expected affectgpt, .* \(fer\), found 'video'$"):
        parse(Whole, {}, "x.yaml", ["task=video"])
    with pytest.raises(ConfigError, match=r"^x.yaml: task: expected affectgpt, found 'fer'$"):
        parse(Whole, {"task": "fer"}, "x.yaml")


def test_users_ways_to_name_a_device():
    def device(**run):
        return parse(Whole, {"run": run}, "x").run.device

    assert [device(device="GPU"), device(device_target="CPU"), device(gpu=1), device(gpu=-1)] == [
        "cuda",
        "cpu",
        "cuda:1",
        "cpu",
    ]
    with pytest.raises(ConfigError, match="gpu: expected the index of one GPU"):
        device(gpu="0,1")
    with pytest.raises(ConfigError, match="no_amp: expected True or False"):
        parse(Whole, {"run": {"no_amp": "maybe"}}, "x")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"min_lr": 1, "init_lr": 0.1}, "min_lr 1.0 is above init_lr 0.1"),
        ({"batch_size": 10**11}, "batch_size_train: .*less than or equal to 1000000, found 100000000000"),
        ({"warmup_steps": 9, "warmup_epochs": 1}, "both given; leave one"),
    ],
)
def test_contradictions_and_what_no_machine_has_are_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        parse(Whole, {"run": run}, "x.yaml")
