"""Instruction records to training examples: the question as the agent in use asks it, the loss on the answer alone."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from affect.core.causal_lm import pad_left
from affect.core.conversation import COLUMNS, SYSTEM, question_ids
from affect.core.reading import parse_json, read_object, reading, require_memory
from affect.core.schema import Tensors
from affect.tasks.au_agent_config import AgentConfig

logger = logging.getLogger(__name__)

MOST_FAULTS = 5
"""Wrong records named in one error, at most."""
HELD_BACK = 0.1
"""Share of the records that is held back where evaluation is asked for on nothing."""
NO_LOSS = -100
"""Label of a token without a loss."""


@dataclass(frozen=True)
class Record:
    """One question with its answer."""

    system: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Source:
    """A file with records, and how its fields are named."""

    path: Path
    columns: dict[str, str]


def read_sets(config: AgentConfig) -> tuple[list[Record], list[Record]]:
    """Return the records to train on and those held out; where no set of its own is named, the last ones are held out.

    The last ones, and not any, because frames of one clip follow each other: they stay on one side.
    Raises ValueError naming data set, file and line of what cannot be read.
    """
    train = _read_all(config, config.dataset)
    if config.eval_dataset:
        return train, _read_all(config, config.eval_dataset)
    size = config.val_size
    if not size and config.eval_strategy != "no":
        size = HELD_BACK
        logger.info(
            "eval_strategy is %s, but eval_dataset and val_size are not given: the last %d %% of the records are held "
            "back",
            config.eval_strategy,
            round(100 * size),
        )
    if not size:
        return train, []
    count = max(1, round(size * len(train))) if size < 1 else int(size)
    if count >= len(train):
        raise ValueError(f"val_size: {count} records held back of {len(train)} leave none to train on; lower it")
    return train[:-count], train[-count:]


def digest(*sets: Sequence[Record]) -> str:
    """Return what tells the records of some sets from others."""
    told = json.dumps([[astuple(record) for record in records] for records in sets])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _read_all(config: AgentConfig, names: Sequence[str]) -> list[Record]:
    records = []
    for name in names:
        source = find_source(config.dataset_dir, name)
        given = read_records(source, SYSTEM if config.default_system is None else config.default_system)
        _warn_of_emotions(source.path, given)
        records += given[: config.max_samples]
    return records


def find_source(dataset_dir: str, name: str) -> Source:
    """Return the file of a data set that dataset_info.json names, or that `name` itself is.

    Raises ValueError where neither is so, or where the entry is of a form that is not read here.
    """
    if Path(name).is_file():
        return Source(Path(name), COLUMNS)
    path = Path(dataset_dir) / "dataset_info.json"
    expected = f"a JSON object that names data set {name!r}"
    with reading(path, expected):
        known = read_object(path, expected, "set dataset_dir, or make the data with tools/prepare_au_agent_data.py")
        entry = known.get(name)
        if entry is None:
            raise ValueError(f"{path}: data set {name!r} is not there, found {', '.join(known)}; correct dataset")
        if not isinstance(entry, dict) or "file_name" not in entry or entry.get("formatting", "alpaca") != "alpaca":
            raise ValueError(f"{path}: data set {name!r}: expected file_name and the alpaca form; make it one of that")
        return Source(path.parent / entry["file_name"], COLUMNS | entry.get("columns", {}))


def read_records(source: Source, system: str) -> list[Record]:
    """Return the records of a JSON or JSON lines file; those without a system turn get `system`.

    Raises ValueError naming the first wrong lines, or that there is nothing.
    """
    records, faults = [], []
    with reading(source.path, "instruction records"):
        for place, entry in _entries(source.path):
            try:
                records.append(_record(entry, source.columns, system))
            except ValueError as error:
                faults.append(f"{place}: {error}")
        if faults:
            more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
            raise ValueError(f"{source.path}: {'; '.join(faults[:MOST_FAULTS])}{more}; correct or remove them")
        if not records:
            raise ValueError(f"{source.path}: expected records with {', '.join(source.columns.values())}, found none")
    return records


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where a record is, and the record: a line of text, or an entry of one JSON list."""
    require_memory(8 * path.stat().st_size, path)
    text = path.read_text(encoding="utf-8-sig")
    whole = parse_json(text) if text.lstrip().startswith("[") else None
    if whole is not None:
        yield from ((f"record {i}", entry) for i, entry in enumerate(whole, 1))
    else:
        yield from ((f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip())


def _record(entry: Any, columns: Mapping[str, str], system: str) -> Record:
    if isinstance(entry, str):
        try:
            entry = parse_json(entry)
        except ValueError as error:
            raise ValueError(f"broken JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {type(entry).__name__}")
    fields = {purpose: entry.get(name) or "" for purpose, name in columns.items()}
    for purpose in ("prompt", "response"):
        if columns[purpose] not in entry:
            raise ValueError(f"{columns[purpose]} is missing")
        if not str(fields[purpose]).strip():
            raise ValueError(f"{columns[purpose]} is empty")
    for purpose in COLUMNS:
        if not isinstance(fields[purpose], str):
            raise ValueError(f"{columns[purpose]} is no text")
    prompt = "\n".join(filter(None, [fields["prompt"], fields["query"]]))
    return Record(fields["system"] or system, prompt, fields["response"].strip())


def _warn_of_emotions(path: Path, records: Sequence[Record]) -> None:
    told = sum(re.search(r"^Emotion:", record.prompt, re.MULTILINE) is not None for record in records)
    if told:
        logger.warning(
            "%s: %d of %d records tell the emotion ('Emotion: ...'), which the agent in use never sees; convert them: "
            "python tools/prepare_au_agent_data.py --jsonl %s --save_root %s",
            path,
            told,
            len(records),
            path,
            path.with_name("au_agent"),
        )


Example = dict[str, Any]
"""input_ids: token ids of question and answer; answer_start: place of the answer's first token; record: its number."""


def make_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, stop: int, cutoff: int
) -> list[Example]:
    """Return question, answer and the token `stop` of each record, at most `cutoff` tokens together.

    An answer that does not fit loses its end, and `stop` with it, so that no one learns to end there; a question is
    never cut, since none is in use, and a record without room for an answer is left out. Raises ValueError where
    all are.
    """
    questions = question_ids(tokenizer, [(record.system, record.prompt) for record in records])
    answers = tokenizer([record.answer for record in records], add_special_tokens=False)["input_ids"] if records else []
    whole = [(asked, [*answer, stop]) for asked, answer in zip(questions, answers, strict=True)]
    examples = [
        {"input_ids": (asked + answer)[:cutoff], "answer_start": len(asked), "record": number}
        for number, (asked, answer) in enumerate(whole, 1)
        if len(asked) < cutoff
    ]
    shortened = sum(cutoff < len(asked) + len(answer) for asked, answer in whole) - (len(whole) - len(examples))
    if len(examples) < len(whole) or shortened:
        longest = max(len(asked) + len(answer) for asked, answer in whole)
        logger.warning(
            "cutoff_len %d: of %d records %d answers lose their end and %d records are left out; the longest has %d "
            "tokens",
            cutoff,
            len(whole),
            shortened,
            len(whole) - len(examples),
            longest,
        )
    if records and not examples:
        raise ValueError(f"cutoff_len {cutoff} leaves no room for any answer; raise it, e.g. to {longest}")
    return examples


@dataclass(frozen=True)
class AnswerBatch(Tensors):
    """Examples that are read together, padded on the left, so that logits are needed for the batch's tail only."""

    inputs: dict[str, Tensor | int]
    """What the model's forward takes: ids, mask, positions [B, L]."""
    labels: Tensor
    """[B, K], K being one more than the longest answer's tokens."""
    names: list[str]
    """The records' numbers."""


def collate(examples: Sequence[Example], accepted: Collection[str]) -> AnswerBatch:
    """Return examples as one batch: answers (5, 6) and (7,) get labels (-100, 5, 6) and (-100, -100, 7).

    accepted: what the model's forward takes; with `logits_to_keep` the widest layer, the output, sees the tail alone.
    """
    ids, mask = pad_left([example["input_ids"] for example in examples])
    answered = [example["input_ids"][example["answer_start"] :] for example in examples]
    kept = min(1 + max(map(len, answered)), ids.shape[1]) if "logits_to_keep" in accepted else ids.shape[1]
    labels = torch.tensor([[NO_LOSS] * (kept - len(answer)) + answer for answer in answered])
    optional = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "logits_to_keep": kept}
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= {name: value for name, value in optional.items() if name in accepted}
    return AnswerBatch(inputs, labels, [str(example["record"]) for example in examples])


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens, from logits [B, K, V] and labels [B, K]."""
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NO_LOSS)


def unigram_loss(train: Sequence[Example], held_out: Sequence[Example]) -> float:
    """Return the mean cross-entropy (nats a token) of held-out answers under the token counts of training answers.

    Counts are smoothed by one; all tokens that no training answer has share one place, which favours the baseline.
    """
    counts = Counter(token for example in train for token in example["input_ids"][example["answer_start"] :])
    total = math.log(counts.total() + len(counts) + 1)
    losses = [
        total - math.log(counts[token] + 1)
        for example in held_out
        for token in example["input_ids"][example["answer_start"] :]
    ]
    return sum(losses) / len(losses)
