"""YAML to mappings: options, and faults in one line each."""

import logging

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from affect.core.typed_yaml import ConfigError, describe_fault, drop_not_needed, read_yaml


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = 1.0


@pytest.mark.parametrize(("text", "found"), [("- a", "found list"), ("", "found NoneType"), ("a: [", "cannot be read")])
def test_files_that_hold_no_settings_are_refused(tmp_path, text, found):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=found) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: expected") and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="but No such file"):
        read_yaml(tmp_path / "gone.yaml")


def test_options_are_set_at_any_depth(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("{a: 1, b: {c: 2}, empty: null}")
    content = read_yaml(path, ["a=[1, x]", "b.c=2.0e-1", "b.d=no", "empty.e=", "new.f=text"])
    assert content == {"a": [1, "x"], "b": {"c": 0.2, "d": False}, "empty": {"e": None}, "new": {"f": "text"}}


@pytest.mark.parametrize(
    ("option", "message"), [("a", "expected key=value"), ("=1", "expected key=value"), ("a.b=1", "a is no section")]
)
def test_wrong_options_are_refused(tmp_path, option, message):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1")
    with pytest.raises(ConfigError, match=f"--options {option}: {message}"):
        read_yaml(path, [option])


def test_faults_name_key_finding_and_nearest_known_key():
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"rate": "fast", "rte": 1, "xyz": 2})
    lines = sorted(describe_fault(fault, "f.yaml", ["rate"]) for fault in caught.value.errors())
    assert lines[0].startswith("f.yaml: rate: input should be a valid number") and lines[0].endswith("found 'fast'")
    assert lines[1:] == [
        "f.yaml: rte: unknown key; did you mean rate?",
        "f.yaml: xyz: unknown key; known keys: rate",
    ]


def test_keys_without_use_leave_with_a_reason(caplog):
    caplog.set_level(logging.INFO)
    section = {"old": 1, "kept": 2}
    drop_not_needed(section, {"old": "it is gone", "other": "unused"}, "f.yaml", "run.")
    assert section == {"kept": 2} and caplog.messages == ["f.yaml: run.old is not needed: it is gone"]
