"""Files that others made: how much of one is taken in, and one sentence for whatever is wrong with it."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

LIMITS: dict[str, tuple[float, str]] = {
    "memory_mb": (512, "MB of memory"),
    "picture_megapixels": (50, "million pixels"),
    "video_megapixels": (17, "million pixels"),  # 4096 x 4096
    "clip_frames": (100_000, "frames"),  # nearly an hour
    "adapter_rank": (1024, "rows of an adapter"),
    "yaml_values": (20_000, "values"),  # aliases as often as they stand
    "yaml_depth": (50, "levels"),
}
"""What a file may ask for: name -> most, and of what."""
LIMITS_VARIABLE = "AFFECT_LIMITS"
"""Environment variable that sets others: picture_megapixels=100,memory_mb=2000"""
LONGEST = 500
"""Characters of a sentence that says what is wrong with a file."""
MOST_LINES = 20
"""Of the faults of a configuration, which has a line for each."""


def limit(name: str) -> float:
    """Return the most that a file may ask for (raises ValueError for a variable that sets none of the limits)."""
    return _limits(os.environ.get(LIMITS_VARIABLE, ""))[name]


@cache
def _limits(given: str) -> dict[str, float]:
    limits = {name: most for name, (most, _) in LIMITS.items()}
    for entry in filter(None, given.replace(",", " ").split()):
        name, _, value = entry.partition("=")
        if name not in limits or not value.replace(".", "", 1).isdecimal():
            known = ", ".join(limits)
            raise ValueError(f"{LIMITS_VARIABLE}: expected name=number with one of {known}; found {entry!r}")
        limits[name] = float(value)
    return limits


def require_within(name: str, found: float, where: str | Path) -> None:
    """Raise ValueError where a file asks for more than its limit; to be called before that is taken."""
    if not found <= limit(name):
        raise ValueError(
            f"{where}: expected at most {limit(name):,.12g} {LIMITS[name][1]}, found {round(found, 2):,.12g}; take a "
            f"smaller file, or set {LIMITS_VARIABLE}={name}={math.ceil(max(found, 2 * limit(name)))}"
        )


def require_memory(size: float, where: str | Path) -> None:
    """Raise ValueError where reading a file would take more bytes than the limit."""
    require_within("memory_mb", size / 2**20, where)


@contextmanager
def reading(
    path: str | Path, expected: str, advice: str = "correct it or make it anew", kind: type[ValueError] = ValueError
) -> Iterator[None]:
    """Turn whatever parsers raise on a file into one `kind` of error, a sentence of at most `LONGEST` characters.

    What names the file already is a sentence of our own: it is kept, and so is an OSError of that sort. What is no
    file, a pipe or a device, is refused before it is opened: it may have no end.
    """
    try:
        if not _file_folder_or_nothing(path):
            raise ValueError(f"{path}: expected {expected}, found a pipe or a device; name a file")
        yield
    except Exception as error:  # on broken files parsers raise nearly every kind there is
        told = str(error)
        if not (isinstance(error, ValueError | OSError) and told.startswith(str(path))):
            told = f"{path}: expected {expected}, but it cannot be read ({reason_of(error)}); {advice}"
            if isinstance(error, FileNotFoundError):
                told = f"{path}: no such file; expected {expected}; {advice}"
        elif isinstance(error, kind | OSError) and len(told) <= LONGEST:
            raise
        lines = told.splitlines()
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        raise kind("\n".join([*map(shortened, lines[:MOST_LINES]), *more])) from None


def _file_folder_or_nothing(path: str | Path) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # told when it is opened
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def reason_of(error: Exception) -> str:
    """Return what a library says is wrong, in a few words on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if hasattr(error, "errors"):  # pydantic's
        first = error.errors()[0]
        return shortened(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 200)
    told = " ".join(str(error).split())
    known = isinstance(error, ValueError | OSError | RuntimeError) and told
    return shortened(told if known else f"{type(error).__name__} {told}".strip(), 200)


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a text with its middle left out where it is longer than `most` characters, and as one that prints."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most * 3 // 5 - 3]} … {text[-(most * 2 // 5) :]}"


def quoted(value: Any) -> str:
    """Return a value of a file as a sentence may quote it."""
    return shortened(repr(value), 100)


def parse_json(text: str | bytes, real: Callable[[str], Any] = float) -> Any:
    """Return a JSON value; `real` makes its numbers with a point, NaN and infinity (raises ValueError as json does).

    Half of a pair of surrogates is refused, for no file can be written with it, and so is a key that stands twice.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    content = json.loads(text, parse_constant=real, parse_float=real, object_pairs_hook=_once)
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {quoted(key)} stands twice in one object")
    return found


def read_object(
    path: str | Path,
    expected: str = "JSON",
    advice: str = "correct it or make it anew",
    kind: type[ValueError] = ValueError,
    real: Callable[[str], Any] = float,
) -> dict[str, Any]:
    """Return a JSON file that is one object (raises `kind` when it is anything else)."""
    with reading(path, expected, advice, kind):
        require_memory(8 * Path(path).stat().st_size, path)  # about what values of Python take
        content = parse_json(Path(path).read_bytes(), real)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, found {json_type(content)}; {advice}")
    return content


def json_lines(
    path: str | Path,
    *keys: str,
    advice: str = "correct it or make it anew",
    kind: type[ValueError] = ValueError,
    whole: bool = False,
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line of a file that is not empty and the JSON object in it, which must have some keys.

    whole: a last line that does not end is left out; it is just being written, or was cut off. Raises `kind` naming
    the line that is anything else.
    """
    expected = f"a JSON object with {', '.join(keys)}" if keys else "a JSON object"
    with reading(path, "lines of JSON", advice, kind), Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (whole and not line.endswith(b"\n")):
                continue
            where = f"{path}: line {number}"
            with reading(where, expected, advice, kind):
                require_memory(8 * len(line), where)
                entry = parse_json(line)
                # clips are named by texts
                if not isinstance(entry, dict) or not entry.keys() >= {*keys} or type(entry.get("name", "")) is not str:
                    raise ValueError(f"{where}: expected {expected}, found something else; {advice}")
            yield line, entry


def json_type(value: Any) -> str:
    """Return what JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def parse_yaml(text: str, where: str | Path) -> Any:
    """Return what YAML of plain values says (raises yaml.YAMLError, and ValueError naming `where` for a limit)."""
    loader = _Loader(text)
    loader.where = where
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Counts what it meets: a few lines of aliases of aliases can stand for billions of values."""

    where: str | Path = ""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[str, float] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._values
        known = isinstance(event, yaml.AliasEvent)
        # a value that holds itself has no size when it is met again
        self._values += self._sizes.get(event.anchor, limit("yaml_values") + 1) if known else 1
        self._depth += 1
        require_within("yaml_values", self._values, self.where)
        require_within("yaml_depth", self._depth, self.where)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode) and not known:
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [key for (_, key), count in keys.items() if count > 1]:
                raise ValueError(f"{self.where}: found the key {quoted(twice[0])} twice in one section; leave one")
        self._depth -= 1
        if not known and event.anchor:
            self._sizes[event.anchor] = self._values - before
        return node
