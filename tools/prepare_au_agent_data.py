"""AU JSON with sentences, or older instruction records, to instruction data for tuning an AU agent.

    python tools/prepare_au_agent_data.py --mer-factory-output output/au --csv_path clips.csv --save_root output/data
    python tools/prepare_au_agent_data.py --jsonl au_instruction.jsonl --save_root output/data

Writes au_agent_train.jsonl, au_agent_val.jsonl and dataset_info.json in LLaMA-Factory's alpaca form, and dropped.csv
with what was left out and why. A record asks what extractors/au/agent.py asks. docs/au_agent.md says what a leak is.
Ends with code 0 even where records leaked, since they are not written; with --strict it is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from affect.core.au_json import list_au_json, read_au_json, sentences
from affect.core.conversation import COLUMNS, SYSTEM
from affect.core.facial_words import WORDS
from affect.core.facs import parse_au_description
from affect.core.files import atomic_write, write_csv, write_json
from affect.core.reading import parse_json, read_object, reading
from affect.data.manifest import parse_labels
from affect.data.tables import read_table
from affect.evaluate.vocabulary import FEELINGS
from extractors.au.templates import INSTRUCTION, active_aus, frame_input

LEAK, UNREADABLE, CUT_OFF, REPEATED = "leak", "unreadable", "cut off", "repeated"
UNDESCRIBED, MISSING = "no sentences", "no AU JSON"
SETS = TRAIN, VAL = ("au_agent_train", "au_agent_val")
Labels = tuple[str, ...]

_MORE_FEELINGS = """
affective boredom confidence contempt curiosity emotion emotional enthusiasm feel felt guilt hostility joyous loneliness
mood panic pride sentiment shame
"""
"""Words for feelings, and for feeling as such, that `FEELINGS` lacks."""

_BODY_WORDS = """
active balanced concentrated controlled depressed engaged firm focused intense neutral pressure reflecting relaxed
restrained stressed strong tense tension tight
"""
"""Labels that are as often said of muscles."""

_FORM = re.compile(
    r"(?<=\w{3})(?:fully|ful|iness|ness|ingly|edly|ily|ly|ments?|ations?|ions?|ings?|ied|ier|iest|ies|al|ally|ed|es|s|"
    r"y|e)$"
)
"""Endings that make another form of the same word."""
_WORD = re.compile(r"\w+")
_CLAUSE = re.compile(r"[^,.;:!?\n]+")
_FACE = re.compile(
    r"\b(?:[a-z]*-?fac(?:e|ial)(?! (?:appearance|demeanou?r|expression|posture|presentation|stance|state))|musc\w+|"
    r"\w*ocular|\w*oral|\w*orbital|regions?|areas?)\b",
    re.IGNORECASE,
)
"""Words for the face beside the parts and muscles of `WORDS`; a facial expression is more than a face."""


@dataclass(frozen=True)
class Record:
    """One frame: what is asked and what is answered; or what is left out, and why."""

    clip: str
    frame: str
    input: str = ""
    text: str = ""
    """The answer."""
    labels: Labels = ()
    reason: str = ""
    """Why it is left out."""
    found: str = ""
    """Words that leak, or what could not be read."""


def main(arguments: list[str] | None = None) -> int:
    """Write the instruction data, print what became of the records; return the exit code."""
    args = parse_arguments(arguments)
    root, folder = args.mer_factory_output, args.save_root
    labels = read_label_table(args.csv_path, args.csv_column, args.label) if args.csv_path else {}
    found = list_au_json(root) if root else []
    paths = [(clip, path) for clip, path in found if not args.csv_path or clip in labels]
    older = [entry for path in args.jsonl for entry in convert(path)]
    clips = {clip for clip, _ in paths} | {entry.clip for entry in older}
    if not clips:
        raise ValueError(f"{root or args.jsonl[0]}: expected records of clips, found none")
    describe_data(folder / "dataset_info.json")
    val = choose_val(clips, args.val_share, args.seed)
    dropped = [Record(clip, "", reason=MISSING) for clip in sorted(labels.keys() - clips)]
    shown = track(paths, description="AU JSON", console=Console(stderr=True), disable=not paths)
    frames = chain.from_iterable(read_frames(clip, path, labels.get(clip, ())) for clip, path in shown)
    counts = write_data(folder, chain(older, frames), val, dropped)
    columns = ("clip", "frame", "reason", "found", "text")
    write_csv(folder / "dropped.csv", columns, map(attrgetter(*columns), dropped))
    print_summary(folder, len(clips) - len(val), len(val), counts, dropped)
    return 1 if args.strict and counts[LEAK] + counts[UNREADABLE] else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mer-factory-output", "--mer_factory_output", type=Path, help="root of AU JSON, data set folders or not")
    add("--csv_path", type=Path, help="table of the clips to take, with their labels")
    add("--csv_column", default="name", help="column with clip names")
    add("--label", nargs="+", default=["openset"], metavar="COLUMN", help="columns with labels")
    add("--jsonl", nargs="+", type=Path, default=[], help="records with an 'Emotion: [...]' line in their input")
    add("--save_root", type=Path, required=True, help="LLaMA-Factory's data folder, or any other")
    add("--val_share", type=float, default=0.1, help="share of the clips that is kept for validation")
    add("--seed", type=int, default=0)
    add("--strict", action="store_true", help="end with code 1 where something leaked or could not be read")
    args = parser.parse_args(arguments)
    if not args.mer_factory_output and not args.jsonl:
        parser.error("expected --mer-factory-output, --jsonl or both")
    if args.csv_path and not args.mer_factory_output:
        parser.error("--csv_path needs --mer-factory-output: records of --jsonl have their own labels")
    if not 0 <= args.val_share < 1:
        parser.error(f"expected --val_share from 0 to below 1, found {args.val_share}")
    return args


def read_label_table(path: Path, name_column: str, label_columns: list[str]) -> dict[str, Labels]:
    """Return clip -> its labels in all of the columns; raises ValueError for a column that is not there."""
    table = read_table(path, name_column, *label_columns, advice="see --csv_column and --label")
    labels: dict[str, Labels] = {}
    for name, *cells in table[[name_column, *label_columns]].itertuples(index=False):
        labels[name] = (*labels.get(name, ()), *chain.from_iterable(map(parse_labels, cells)))
    return labels


def read_frames(clip: str, path: Path, labels: Labels) -> Iterator[Record]:
    """Yield the described frames of a clip's AU JSON."""
    try:
        analysis = read_au_json(path)
    except (OSError, ValueError) as error:
        yield Record(clip, "", reason=UNREADABLE, found=str(error))
        return
    frames = {frame.get("frame"): frame for frame in analysis.per_frame_au_descriptions}
    numbers = sorted(analysis.summary_description or analysis.fine_grained_descriptions, key=int)
    if not numbers:
        yield Record(clip, "", reason=UNDESCRIBED)
    for number, sentence in zip(numbers, sentences(analysis), strict=True):
        try:
            if int(number) not in frames:
                raise ValueError("the frame has no action units")
            yield Record(clip, number, frame_input(active_aus(frames[int(number)])), sentence, labels)
        except ValueError as error:
            yield Record(clip, number, text=sentence, reason=UNREADABLE, found=str(error))


def convert(path: Path) -> Iterator[Record]:
    """Yield the records of JSON lines whose inputs end in `AU descriptions: ...`, without their line of emotions.

    They do not name their clips; but all frames of a clip have the same emotions, so these stand for the clip.
    """
    with reading(path, "JSON lines"), path.open(encoding="utf-8-sig") as lines:
        for i, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {i}"
            try:
                with reading(where, "instruction, input, output"):
                    given = parse_json(line)
                    head, _, described = given["input"].strip().rpartition("AU descriptions:")
                    output = str(given["output"]).strip()
                    described = described.strip().removesuffix("none")
                    asked = frame_input(parse_au_description(described))
            except ValueError as error:
                yield Record(where, where, text=line.strip(), reason=UNREADABLE, found=str(error))
                continue
            emotions = re.match(r"Emotion:(.*)", head)
            labels = parse_labels(emotions[1]) if emotions else ()
            yield Record(emotions[0] if emotions else described, where, asked, output, labels)


def choose_val(clips: Collection[str], share: float, seed: int) -> frozenset[str]:
    """Return the clips for validation: the same for the same seed, at least one of several clips unless share is 0."""
    count = max(round(share * len(clips)), 1) if share and len(clips) > 1 else 0
    return frozenset(sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}:{clip}".encode()).digest())[:count])


def write_data(folder: Path, records: Iterable[Record], val: Collection[str], dropped: list[Record]) -> Counter[str]:
    """Write the records that are fit for it, add the others to `dropped`; return records of each set and reason."""
    counts: Counter[str] = Counter(entry.reason for entry in dropped)
    written: set[bytes] = set()
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(folder / f"{name}.jsonl")) for name in SETS}
        for entry in map(check, records):
            if entry.reason:
                counts[entry.reason] += 1
                dropped.append(entry)
                continue
            key = hashlib.sha256(f"{entry.input}\n{entry.text}".encode()).digest()
            if key in written:
                counts[REPEATED] += 1
                continue
            written.add(key)
            name = VAL if entry.clip in val else TRAIN
            counts[name] += 1
            # the system turn is the one that the agent gets later
            record = {"instruction": INSTRUCTION, "input": entry.input, "output": entry.text, "system": SYSTEM}
            files[name].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return counts


def check(record: Record) -> Record:
    """Return a record, and why where it is not fit for training."""
    if record.reason:
        return record
    if found := leaks(record.text, record.labels):
        return replace(record, reason=LEAK, found=", ".join(found))
    if record.text[-1:] not in (*".!?。", '"'):
        return replace(record, reason=CUT_OFF, found=record.text[-20:])
    return record


def leaks(text: str, labels: Iterable[str] = ()) -> list[str]:
    """Return the words of a text that name a feeling, or one of the labels, in any form, each once.

    A negated feeling ("no sadness") is named, too. Words that are as often said of muscles ("tense",
    "depressed", "open") count only in a clause without a part of the face.
    """
    text = text.lower()
    targets = _GENERAL | {_forms(label) for label in labels}
    longest = max(map(len, targets))
    found = []
    for clause in _CLAUSE.finditer(text):
        words = list(_WORD.finditer(text, *clause.span()))
        stems = [_stem(word[0]) for word in words]
        for i, word in enumerate(words):
            length = next(
                (n for n in range(min(longest, len(words) - i), 0, -1) if tuple(stems[i : i + n]) in targets), 0
            )
            bodily = stems[i] in _BODY or WORDS.fullmatch(word[0])  # may be about muscles alone
            if length > 1 or (length and not (bodily and _names_face(clause[0], word[0]))):
                found.append(text[word.start() : words[i + length - 1].end()])
    return list(dict.fromkeys(found))


def _stem(word: str) -> str:
    return _FORM.sub("", word)


def _forms(label: str) -> tuple[str, ...]:
    """Return the stems of a label's words."""
    return tuple(_stem(word) for word in _WORD.findall(label.lower()))


_GENERAL = {_forms(word) for word in (*FEELINGS, *_MORE_FEELINGS.split())}
_BODY = {_stem(word) for word in _BODY_WORDS.split()}


def _names_face(clause: str, word: str) -> bool:
    """Whether a clause names a part of the face or a muscle beside the word itself."""
    named = (match for match in WORDS.finditer(clause) if not match.lastgroup.startswith("move"))
    return any(match[0] != word for match in chain(_FACE.finditer(clause), named))


def describe_data(path: Path) -> None:
    """Name both sets in a dataset_info.json, beside what is in it; raises ValueError where that is no JSON object."""
    known = read_object(path, "a JSON object with data sets", "correct or remove it") if path.exists() else {}
    write_json(path, known | {name: {"file_name": f"{name}.jsonl", "columns": COLUMNS} for name in SETS})


def print_summary(folder: Path, train: int, val: int, counts: Counter[str], dropped: list[Record]) -> None:
    """Print the size of both sets, what was left out and the words that leaked most."""
    table = Table(title=escape(str(folder)), show_header=False)
    for name, clips in zip(SETS, (train, val), strict=True):
        table.add_row(name, f"{counts[name]} records of {clips} clips")
    for reason in (LEAK, CUT_OFF, UNREADABLE, REPEATED, UNDESCRIBED, MISSING):
        table.add_row(f"left out: {reason}", str(counts[reason]))
    words = Counter(word for entry in dropped if entry.reason == LEAK for word in entry.found.split(", "))
    if words:
        table.add_row("words that leaked", escape(", ".join(f"{word} ({n})" for word, n in words.most_common(10))))
    console = Console()
    console.print(table)
    if dropped:
        console.print(f"see {escape(str(folder / 'dropped.csv'))}", soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
