"""Prompts: which sentences a clip's streams, subtitle and question become."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from affect.layouts import LAYOUTS
from affect.schema import PLACEHOLDERS, Clip, Modality

DEFAULT_PROMPTS = Path(__file__).with_name("prompts.yaml")


@dataclass(frozen=True)
class PromptBook:
    """The wording of prompts and answers."""

    start: str
    streams: Mapping[str, str]
    """Stream name (and 'subtitle') -> sentence with its placeholder token."""
    end: str
    questions: Mapping[str, Mapping[str, str]]
    """Question kind -> question and answer pattern."""
    answer_end: str = ""
    """Text that closes every answer, before the end-of-text token."""
    layouts: Mapping[str, str] = field(default_factory=dict)
    """Layout name -> whole prompt, used instead of the parts."""

    def prompt(
        self, layout: str, present: Collection[Modality], subtitle: str, question: str, tokens: Mapping[Modality, int]
    ) -> str:
        """Return the prompt of one clip.

        present: streams that the clip has; tokens: stream -> number of fused tokens, hence of placeholders.
        A stream that is absent keeps no placeholder; made from parts, the prompt does not mention it either.
        """
        shown = shown_streams(layout, present)
        if layout in self.layouts:
            text = self.layouts[layout]
        else:
            sentences = [self.streams[stream] for stream in shown]
            if LAYOUTS[layout].subtitle and subtitle:
                sentences.append(self.streams["subtitle"])
            text = self.start + "".join(sentences) + self.end
        for stream, placeholder in PLACEHOLDERS.items():
            text = text.replace(placeholder, placeholder * tokens[stream] if stream in shown else "")
        return text.replace("{QUESTION}", question).replace("{SUBTITLE}", _plain(subtitle))

    def question(self, kind: str) -> str:
        """Return the question of one kind (raises ValueError for an unknown kind)."""
        if kind not in self.questions:
            raise ValueError(f"question kind {kind!r}: expected one of {', '.join(self.questions)}")
        return self.questions[kind]["question"]

    def answer(self, kind: str, clip: Clip) -> str:
        """Return the target text of one kind for a labelled clip.

        Raises ValueError when the clip's table has no such label.
        """
        value = clip.description if kind == "description" else ", ".join(clip.labels)
        if not value:
            raise ValueError(f"clip {clip.name!r} of {clip.dataset} has no {kind}: expected it in the data set's table")
        pattern = self.questions[kind]["answer"]
        return pattern.replace("{DESCRIPTION}", value).replace("{OVLABELS}", value) + self.answer_end


def shown_streams(layout: str, present: Collection[Modality]) -> tuple[Modality, ...]:
    """Return the streams of a layout that can be shown, MULTI first when any of its streams is there."""
    parts = LAYOUTS[layout]
    fused = (Modality.MULTI,) if any(stream in present for stream in parts.fused) else ()
    return fused + tuple(stream for stream in parts.branches if stream in present)


def _plain(subtitle: str) -> str:
    """Subtitle text may not smuggle placeholder tokens into the prompt."""
    for placeholder in PLACEHOLDERS.values():
        subtitle = subtitle.replace(placeholder, "")
    return " ".join(subtitle.split())


def load_prompts(path: str | Path | None = None) -> PromptBook:
    """Read prompt wording from a YAML or JSON file (default: the wording that comes with the package).

    Raises ValueError naming the file when a part is missing.
    """
    path = Path(path) if path else DEFAULT_PROMPTS
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        return PromptBook(**content)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected prompt wording as in affect/data/prompts.yaml") from None
    except (TypeError, yaml.YAMLError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).replace("PromptBook.__init__()", "").split())
        raise ValueError(f"{path}: expected prompt wording as in affect/data/prompts.yaml: {reason}") from None
