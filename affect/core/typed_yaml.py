"""YAML files as typed settings: reading them, options over them, and every fault as one line."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

logger = logging.getLogger(__name__)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line a fault."""


class Section(BaseModel):
    """A section of a file: an unknown key is a fault."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=False, populate_by_name=True)


def read_yaml(path: str | Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """Return the mapping in a YAML file with `section.key=value` options set in it (raises ConfigError)."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a YAML configuration, but {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, but it cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    for option in options:
        apply_option(content, option)
    return content


def apply_option(content: dict[str, Any], option: str) -> None:
    """Set one `section.key=value` in a mapping, the value read as YAML (raises ConfigError)."""
    key, equals, value = option.partition("=")
    if not equals or not key:
        raise ConfigError(f"--options {option}: expected key=value, e.g. run.max_epoch=2")
    *sections, last = key.split(".")
    target = content
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise ConfigError(f"--options {option}: {section} is no section")
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--options {option}: {value!r} is no YAML value; quote it") from None


def drop_not_needed(section: dict[str, Any], reasons: Mapping[str, str], where: str, prefix: str = "") -> None:
    """Take the keys that nothing needs out of a section, saying of each why it is not needed."""
    for key in sorted(reasons.keys() & section.keys()):
        logger.info("%s: %s%s is not needed: %s", where, prefix, key, reasons[key])
        del section[key]


def describe_fault(fault: Mapping[str, Any], where: str, known: Collection[str]) -> str:
    """Return a fault that pydantic found as one line; `known` are the keys of the section that it is in."""
    keys = [str(part) for part in fault["loc"]]
    key = ".".join(keys) or "file"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{where}: {key}: unknown key; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    found = "" if isinstance(fault["input"], dict | BaseModel) else f", found {fault['input']!r}"
    return f"{where}: {key}: {message[0].lower() + message[1:]}{found}"
