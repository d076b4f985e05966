import os

import pytest

from affect.core.config import read_yaml
from affect.core.reading import LONGEST, limit, parse_json, parse_yaml, read_object, reading, require_within
from affect.data.tables import read_table
from affect.expressions.image_files import read_image


class _Own(ValueError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a\nb"),
        KeyError("k"),
        MemoryError(),
        RecursionError("deep"),
        OSError(5, "broken"),
        TypeError("x" * 9999),
    ],
)
def test_whatever_a_parser_raises_becomes_one_short_sentence_of_its_own_kind(error):
    with pytest.raises(_Own) as caught, reading("f.json", "JSON", "make it anew", _Own):
        raise error
    said = str(caught.value)
    assert said.startswith("f.json: expected JSON, but it cannot be read (") and said.endswith("; make it anew")
    assert len(said) <= LONGEST and "\n" not in said


def test_sentences_of_our_own_are_kept_and_made_short():
    with pytest.raises(_Own, match=r"^f: mine$"), reading("f", "JSON", kind=_Own):
        raise ValueError("f: mine")
    with pytest.raises(FileNotFoundError, match=r"^f: gone$"), reading("f", "JSON", kind=_Own):
        raise FileNotFoundError("f: gone")
    with pytest.raises(ValueError, match=r"^f: x+ … x+; mend it$") as caught, reading("f", "JSON"):
        raise ValueError(f"f: {'x' * 70_000}; mend it")
    assert len(str(caught.value)) == LONGEST


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(_Own, match=r"gone: no such file; expected JSON; look$"):
        read_object(tmp_path / "gone", advice="look", kind=_Own)


def test_stopping_is_not_an_error_of_a_file():
    with pytest.raises(KeyboardInterrupt), reading("f", "JSON"):
        raise KeyboardInterrupt


def test_limits_can_be_set(monkeypatch):
    with pytest.raises(
        ValueError, match=r"^f: expected at most 50 million pixels, found 81; .*=picture_megapixels=100$"
    ):
        require_within("picture_megapixels", 81, "f")
    monkeypatch.setenv("AFFECT_LIMITS", "memory_mb=1.5, picture_megapixels=81")
    require_within("picture_megapixels", 81, "f")
    assert (limit("memory_mb"), limit("yaml_depth")) == (1.5, 50)
    for wrong in ("pixels=3", "memory_mb=-1", "memory_mb"):
        monkeypatch.setenv("AFFECT_LIMITS", wrong)
        with pytest.raises(ValueError, match="AFFECT_LIMITS: expected name=number with one of memory_mb, "):
            limit("memory_mb")


@pytest.mark.parametrize("read", [read_object, read_yaml, read_table, read_image])
def test_a_pipe_or_a_device_is_refused_unopened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", "/dev/zero"):
        with pytest.raises(ValueError, match=rf"^{path}: expected .*, found a pipe or a device; name a file$"):
            read(path)


def test_a_key_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="'a' stands twice"):
        parse_json('[{"a": {"a": 1}, "b": 2}, {"a": 1, "b": 2, "a": 1}]')
    with pytest.raises(ValueError, match=r"^f: found the key 'run' twice in one section; leave one$"):
        parse_yaml("run: {a: 1}\nmodel: {run: 2}\nrun: {b: 2}", "f")
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "f") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_json_that_could_not_be_written_again_is_refused():
    assert parse_json('{"a": "\\ud83d\\ude42"}') == {"a": "🙂"}
    for text in ('["\\ud800"]', '{"\\uDFFF": 1}'):
        with pytest.raises(ValueError, match="surrogates"):
            parse_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a, *a]", "20,000 values"),
        ("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else 'x')}]" for i in range(9)), "20,000 values"),
        ("[" * 51 + "]" * 51, "50 levels"),
        ("[" * 200_000, "50 levels"),
    ],
    ids=["holds itself", "aliases of aliases", "deep", "deep and cut"],
)
def test_yaml_that_stands_for_more_than_it_says_is_refused(text, said):
    with pytest.raises(ValueError, match=rf"^f\.yaml: expected at most {said}"):
        parse_yaml(text, "f.yaml")


def test_aliases_stand_for_what_they_name():
    assert parse_yaml("a: &x [1, {b: 2}]\nc: *x\nd: [*x]", "f") == {
        "a": [1, {"b": 2}],
        "c": [1, {"b": 2}],
        "d": [[1, {"b": 2}]],
    }
