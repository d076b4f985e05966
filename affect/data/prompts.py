"""Prompts: which sentences a clip's streams, subtitle and question become."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from affect.core.layouts import LAYOUTS
from affect.core.reading import parse_json, parse_yaml, reading
from affect.core.schema import PLACEHOLDERS, SPECIAL_TOKENS, Clip, Modality
from affect.data.known_datasets import NEGATIVE, NEUTRAL, NO_CHOICES, POSITIVE, Choices

NEEDS = {
    "description": "description",
    "ovlabel": "labels",
    "onehot_w_candidates": "labels",
    "onehot_wo_candidates": "labels",
    "sentiment": "valence",
    "valence": "valence",
}
"""Question kind -> field of a clip that answers it."""
DEFAULT_PROMPTS = Path(__file__).with_name("prompts.yaml")


@dataclass(frozen=True)
class PromptBook:
    """The wording of prompts and answers."""

    start: str
    streams: Mapping[str, str]
    """Stream name (and 'subtitle', and 'nonverbal' for action units in words) -> sentence with its placeholder."""
    end: str
    questions: Mapping[str, Mapping[str, str]]
    """Question kind -> question and answer pattern."""
    answer_end: str = ""
    """Text that closes every answer, before the end-of-text token."""
    layouts: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    """Layout name -> whole prompt, used instead of the parts; or two, `with` and `without` action units in words."""
    between_candidates: str = ", "
    """What stands between the labels that a question lists."""

    def prompt(
        self,
        layout: str,
        present: Collection[Modality],
        subtitle: str,
        question: str,
        tokens: Mapping[Modality, int],
        caption: str = "",
    ) -> tuple[str, dict[str, tuple[int, int]]]:
        """Return the prompt of one clip, and where in it SUBTITLE and NONVERBAL (the caption) are.

        present: streams that the clip has; tokens: stream -> number of fused tokens, hence of placeholders; caption:
        its action units in words. A stream that is absent keeps no placeholder; made from parts, the prompt does not
        mention it either, nor an empty subtitle.
        """
        filled = {key: " ".join(_plain(text).split()) for key, text in (("SUBTITLE", subtitle), ("NONVERBAL", caption))}
        told = bool(filled["NONVERBAL"])
        shown = shown_streams(layout, present, told)
        if layout in self.layouts:
            text = self.layouts[layout]
            text = text if isinstance(text, str) else text["with" if told else "without"]
        else:
            text = "".join([self.start, *self._sentences(layout, shown, told, bool(filled["SUBTITLE"])), self.end])
        for stream, placeholder in PLACEHOLDERS.items():
            text = text.replace(placeholder, placeholder * tokens[stream] if stream in shown else "")
        prompt, places = "", {}
        for piece in re.split(r"(\{[A-Z]+\})", text):
            value = {**filled, "QUESTION": question}.get(piece[1:-1], piece)
            places.setdefault(piece[1:-1], (len(prompt), len(prompt) + len(value)))
            prompt += value
        return prompt, {key: places[key] for key in filled if key in places}

    def _sentences(self, layout: str, shown: Collection[Modality], told: bool, spoken: bool) -> Iterator[str]:
        """Yield the sentence of each stream that a prompt shows, and that of the subtitle."""
        parts = ["nonverbal" if told and stream == Modality.AU else str(stream) for stream in shown]
        for part in [*parts, *(["subtitle"] if LAYOUTS[layout].subtitle and spoken else [])]:
            if part not in self.streams:
                raise ValueError(f"prompt wording: expected a sentence streams.{part}, found none; add it to the file")
            yield self.streams[part]

    def question(self, kind: str, choices: Choices = NO_CHOICES) -> str:
        """Return the question of one kind (raises ValueError for an unknown kind, or one that lacks its choices)."""
        if kind not in self.questions:
            raise ValueError(f"question kind {kind!r}: expected one of {', '.join(self.questions)}")
        if kind == "onehot_w_candidates" and not choices.labels:
            raise ValueError(f"{kind}: expected labels to choose from, found none; list them in candidate_labels")
        if kind == "valence" and choices.valence_range is None:
            raise ValueError(f"{kind}: expected the lowest and highest value, found none; set valence_range")
        lowest, highest = choices.valence_range or ("", "")
        listed = self.between_candidates.join(choices.labels)
        filled = {"CANDIDATES": listed, "LOWEST": str(lowest), "HIGHEST": str(highest)}
        return _fill(self.questions[kind]["question"], filled)

    def answer(self, kind: str, clip: Clip) -> str:
        """Return the target text of one kind for a labelled clip.

        Raises ValueError when the clip has no such label in its table, or several where one is asked for.
        """
        if getattr(clip, NEEDS[kind]) in ((), "", None):
            raise ValueError(f"clip {clip.name!r} of {clip.dataset} has no {kind}: expected it in the data set's table")
        if kind.startswith("onehot") and len(clip.labels) > 1:
            raise ValueError(
                f"clip {clip.name!r} of {clip.dataset} has the labels {', '.join(clip.labels)}: expected one for "
                f"{kind}; ask for ovlabel"
            )
        labels = ", ".join(clip.labels)
        filled = {"DESCRIPTION": clip.description, "OVLABELS": labels, "LABEL": labels}
        if clip.valence is not None:
            filled |= {"VALENCE": f"{clip.valence:.2f}", "SENTIMENT": sentiment_word(clip.valence)}
        filled = {key: _plain(text) for key, text in filled.items()}
        return _fill(self.questions[kind]["answer"], filled) + self.answer_end


_BOOK = TypeAdapter(PromptBook)


def sentiment_word(valence: float) -> str:
    """Return negative, neutral or positive: only a valence of exactly 0 is neutral."""
    return NEUTRAL if valence == 0 else POSITIVE if valence > 0 else NEGATIVE


def shown_streams(layout: str, present: Collection[Modality], told: bool = False) -> tuple[Modality, ...]:
    """Return the streams of a layout that can be shown, MULTI first when any of its streams is there.

    told: action units are words, which are shown but not fused.
    """
    parts = LAYOUTS[layout]
    read = {*present} - {Modality.AU} if told else present
    fused = (Modality.MULTI,) if any(stream in read for stream in parts.fused) else ()
    return fused + tuple(s for s in parts.branches if s in read or (told and s == Modality.AU))


def _plain(text: str) -> str:
    """Text of a table may not smuggle placeholder tokens into a prompt; the space keeps its halves from making one."""
    for token in SPECIAL_TOKENS:
        text = text.replace(token, " ")
    return text


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    """Put values into a pattern, all at once: a value that looks like a pattern stays as it is."""
    return re.sub(r"\{([A-Z]+)\}", lambda found: values.get(found[1], found[0]), pattern)


def load_prompts(path: str | Path | None = None) -> PromptBook:
    """Read prompt wording from a YAML or JSON file (default: the wording that comes with the package).

    Raises ValueError naming the file when a part is missing.
    """
    path = Path(path) if path else DEFAULT_PROMPTS
    with reading(path, "prompt wording as in affect/data/prompts.yaml"):
        text = path.read_text(encoding="utf-8")
        book = _BOOK.validate_python(parse_json(text) if path.suffix == ".json" else parse_yaml(text, path))
        for kind, texts in book.questions.items():
            if not texts.keys() >= {"question", "answer"}:
                raise ValueError(f"{path}: questions.{kind}: expected question and answer")
        for layout, text in book.layouts.items():
            if not isinstance(text, str) and not text.keys() >= {"with", "without"}:
                raise ValueError(f"{path}: layouts.{layout}: expected a prompt, or two: with and without")
    return book
