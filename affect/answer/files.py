"""Files of answers: JSON lines that grow clip by clip, what they were made with, and the published program's .npz."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.files import atomic_write, naming
from affect.core.reading import json_lines, read_object
from affect.core.weights import weights_hash
from affect.data.config import Config, DatasetConfig
from affect.data.prompts import PromptBook
from affect.features.store import encoder_identity

REASONING, LABELS = "description", "ovlabel"
"""Question kinds of the two ways to answer."""


@dataclass(frozen=True)
class Answer:
    """What the model said of a clip, and what it had to go by."""

    name: str
    dataset: str
    question: str
    answer: str
    streams: list[str]
    """Streams that the prompt showed; 'multi' is the pre-fusion of several."""
    missing: list[str]
    """Streams of the layout that the prompt did not show: absent in the clip, but for those named below."""
    unmeasured: list[str] = field(default_factory=list)
    """Of the missing ones those that nobody looked for, so that the clip may have them."""
    withheld: list[str] = field(default_factory=list)
    """Of the missing ones those that were left out on request (inference.without)."""
    subtitle: str = ""
    words_left_out: int = 0
    """Words at the beginning of the subtitle, and then at the caption's end, that the prompt had no room for."""
    nonverbal: str = ""
    """Its action units in words, where the prompt showed them so."""
    action_units: dict[str, float] = field(default_factory=dict)
    """Highest intensity (0 to 5) of each action unit over the clip, where its AU analysis is known."""
    labels: list[str] = field(default_factory=list)
    """True labels, where the table has them."""


def answers_path(base_root: str, dataset: str, checkpoint: Path, kind: str) -> Path:
    """Return where the answers to one kind of question are: {base_root}-{dataset}/{run}/{checkpoint}-{kind}.jsonl."""
    folder = Path(f"{base_root}-{dataset.lower()}") / checkpoint.parent.name
    return folder / f"{checkpoint.name}-{kind}.jsonl"


def answer_settings(
    config: Config, section: DatasetConfig, checkpoint: Path, prompts: PromptBook, kind: str
) -> dict[str, Any]:
    """Return everything that decides what is answered, as JSON values; answers of other settings are not mixed."""
    inference, model = config.inference, config.model
    wording = json.dumps(asdict(prompts), sort_keys=True)
    sampled = ("top_p", "temperature", "seed") if inference.do_sample else ()
    return {
        "checkpoint": weights_hash(checkpoint),
        "language_model": encoder_identity(model.llama_model),
        "load_in_4bit": model.load_in_4bit,
        "layout": section.face_or_frame,
        "features": {
            str(stream): section.spec(stream, model.feature_dim(stream)).folder for stream in section.layout.needed
        },
        **({"captions": _captions(section)} if section.captioned else {}),
        "without": sorted(inference.without),
        "question": prompts.question(kind),
        "wording": hashlib.sha256(wording.encode()).hexdigest()[:16],
        "max_length": model.max_length,
        **{key: getattr(inference, key) for key in ("max_new_tokens", "do_sample", "backend", *sampled)},
    }


def _captions(section: DatasetConfig) -> str:
    return weights_hash(section.nonverbal_json) if section.nonverbal_json else "AU JSON"


def resume_answers(path: Path, settings: dict[str, Any], overwrite: bool = False) -> set[str]:
    """Return the clips that a file of answers has, after dropping a last line that a killed run left half written.

    A new file starts with `settings` written beside it. Raises ValueError where the file was made with others, or
    a line is no answer.
    """
    beside = path.with_suffix(".settings.json")
    if overwrite or not path.is_file():
        for old in (path, npz_path(path), beside):
            old.unlink(missing_ok=True)
        with atomic_write(beside) as handle:
            handle.write(json.dumps(settings, indent=1, ensure_ascii=False).encode() + b"\n")
        return set()
    _require_same(path, beside, settings)
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    return set(read_answered(path))


def write_answers(path: Path, answers: Iterable[Answer]) -> int:
    """Add answers to a file of JSON lines, each as soon as it comes, and return how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with naming(path), path.open("a", encoding="utf-8", buffering=1) as handle:
        for answer in answers:
            count += 1
            handle.write(_line(answer))
    return count


def put_answer(path: Path, answer: Answer) -> None:
    """Add an answer to a file of JSON lines in place of those that its clip had, whole or not at all."""
    kept = [line for line, record in _records(path) if record["name"] != answer.name] if path.is_file() else []
    with atomic_write(path) as handle:
        handle.write(b"".join([*kept, _line(answer).encode()]))


def read_answered(path: Path) -> dict[str, str]:
    """Return name -> answer of a file of JSON lines (raises ValueError naming the line that is none)."""
    return {record["name"]: record["answer"] for _, record in _records(path)}


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False) + "\n"


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the whole lines of a file of answers and what they hold."""
    advice = "delete that line, or give --overwrite to make all answers anew"
    return json_lines(path, "name", "answer", advice=advice, whole=True)


def npz_path(path: Path) -> Path:
    """Return where the published program keeps the answers of a file: {checkpoint}.npz for descriptions."""
    return path.with_name(path.name.removesuffix(f"-{REASONING}.jsonl").removesuffix(".jsonl") + ".npz")


def write_npz(path: Path) -> Path:
    """Write the answers of a file of JSON lines as the published scorer reads them; return the path of the .npz.

    It holds `name2reason`, a dict of strings in an object array.
    """
    target = npz_path(path)
    with atomic_write(target) as handle:
        np.savez_compressed(handle, name2reason=np.array(read_answered(path), dtype=object))
    return target


def _require_same(path: Path, beside: Path, settings: dict[str, Any]) -> None:
    try:
        found = read_object(beside)
    except ValueError:
        found = {}
    if found == (expected := json.loads(json.dumps(settings))):
        return
    differing = [key for key in expected if found.get(key) != expected[key]]
    what = f"other settings ({', '.join(differing)})" if found else f"unknown settings (no {beside.name} beside it)"
    raise ValueError(
        f"{path}: expected answers of this run's settings, found answers made with {what}; give --overwrite to make "
        "them anew, or another inference.base_root"
    )
