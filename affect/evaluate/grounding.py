"""Does a text speak of what the clip shows? Action units and streams that it names, against those that are there.

A mention is a movement of a part of the face ("the brows are lowered", "lid tightening"), a muscle, or the code of
an action unit. Some fit several units ("raised brows": inner, outer or both); such a mention is right when any of
them is there, and covers those of them that are. Negated mentions do not count.

Precision is the share of mentions that are right, recall the share of units that are mentioned, both over all texts
together, so a text without mentions costs recall only; 0/0 is NaN.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from affect.core.cues import absent_streams
from affect.core.facial_words import ABSENT, ALONE, AND_MOVE, BEFORE_MOVE, BEFORE_PART, BETWEEN_PARTS, MOVED, WORDS
from affect.evaluate.answers import is_negated

Units = frozenset[str]


@dataclass
class Grounding:
    """Counts over texts, and what they come to."""

    texts: int = 0
    without_units: int = 0
    """Texts about clips whose action units are not known; they count for streams only."""
    mentions: int = 0
    right: int = 0
    units: int = 0
    covered: int = 0
    faultless: int = 0
    """Texts that mention something, and nothing that is not there."""
    silent: int = 0
    """Texts without any mention."""
    absent: int = 0
    """Texts that speak of what the clip, as the model got it, does not have."""
    absent_from: Counter[str] = field(default_factory=Counter)
    """What those texts speak of: voice, face, scene, video."""
    unfounded: Counter[str] = field(default_factory=Counter)
    """Units that were mentioned and are not there."""

    @property
    def precision(self) -> float:
        """Share of mentions that the clip bears out."""
        return _ratio(self.right, self.mentions)

    @property
    def recall(self) -> float:
        """Share of the clips' units that are mentioned."""
        return _ratio(self.covered, self.units)

    @property
    def faultless_share(self) -> float:
        """Share of texts about known units that mention something, and nothing that is not there."""
        return _ratio(self.faultless, self.texts - self.without_units)

    @property
    def absent_share(self) -> float:
        """Share of texts that speak of a stream that the clip does not have."""
        return _ratio(self.absent, self.texts)

    def add(self, text: str, active: Collection[str] | None, absent: Collection[str] = ()) -> None:
        """Count one text against the action units (`AU12`) that are active in its clip, None where not known.

        absent: what it speaks of although the clip, as the model got it, does not show it.
        """
        self.texts += 1
        self.absent += bool(absent)
        self.absent_from.update(absent)
        if active is None:
            self.without_units += 1
            return
        found, active = mentions(text), set(active)
        wrong = [units for units in found if not units & active]
        self.mentions += len(found)
        self.right += len(found) - len(wrong)
        self.units += len(active)
        self.covered += len(active & frozenset().union(*found))
        self.faultless += bool(found) and not wrong
        self.silent += not found
        self.unfounded.update(" or ".join(sorted(units)) for units in wrong)


def ground(texts: Iterable[tuple[str, Collection[str] | None]]) -> Grounding:
    """Return how texts agree with the action units (`AU12`) that they are about: pairs of text and units or None."""
    counts = Grounding()
    for text, active in texts:
        counts.add(text, active)
    return counts


def ground_answers(answers: Iterable[Mapping[str, Any]], at_least: float = 0.0) -> Grounding:
    """Return how answers, as inference.py writes them, agree with the action units and streams of their clips.

    at_least: intensity (0 to 5) from which on a unit counts as shown. Answers without `action_units` count for
    streams only.
    """
    counts = Grounding()
    for answer in answers:
        known = answer["action_units"]
        active = [unit for unit, intensity in known.items() if intensity >= at_least] if known else None
        absent = absent_streams(answer["answer"], answer["streams"], answer["missing"])
        counts.add(answer["answer"], active, absent)
    return counts


def mentions(text: str) -> list[Units]:
    """Return which units each movement in the face fits that a text speaks of, each kind of movement once."""
    found: dict[Units, None] = {}
    for sentence in re.finditer(r"[^.;!?\n]+", text):
        for start, units in _Sentence(text, list(WORDS.finditer(text, *sentence.span()))).units():
            if not is_negated(text, start) and not ABSENT.search(text, sentence.start(), start):
                found.setdefault(units)
    return list(found)


@dataclass(frozen=True)
class _Sentence:
    """The words of a sentence that name a part of the face, a movement, a muscle or a unit."""

    text: str
    words: list[re.Match[str]]

    def kind(self, i: int) -> str:
        """What a word is: part, move, alone or code; '' outside the sentence."""
        return self.words[i].lastgroup.partition("_")[0] if 0 <= i < len(self.words) else ""

    def key(self, i: int) -> str:
        """Which part, movement or muscle a word is."""
        return self.words[i].lastgroup.partition("_")[2]

    def joined(self, i: int, gap: re.Pattern[str]) -> bool:
        """Whether nothing but words of `gap` stands between a word and the next."""
        return gap.fullmatch(self.text, self.words[i].end(), self.words[i + 1].start()) is not None

    def units(self) -> list[tuple[int, Units]]:
        """Return start and units of every mention."""
        found: list[tuple[int, Units]] = []
        parts: list[int] = []
        used: set[int] = set()
        for i, word in enumerate(self.words):
            what = self.kind(i)
            if what == "alone":
                found.append((word.start(), ALONE[self.key(i)]))
            elif what == "code":
                found.append((word.start(), frozenset({f"AU{int(word[0][2:]):02d}"})))
            elif what == "move":
                # "lip stretching and parting": a movement without a part of its own goes on with that of the last one
                goes_on = self.kind(i - 1) == "move" and self.joined(i - 1, AND_MOVE)
                parts = self.parts_of(i, used) or (parts if goes_on else [])
                used.update(parts)
                for j in parts:
                    if units := MOVED.get((self.key(j), self.key(i))):
                        found.append((min(self.words[j].start(), word.start()), units))
        return sorted(found, key=lambda mention: mention[0])

    def parts_of(self, move: int, used: set[int]) -> list[int]:
        """Return which parts of the face a movement is said of: those right before it, or else right after it."""
        if self.kind(move - 1) == "part" and move - 1 not in used and self.joined(move - 1, BEFORE_MOVE):
            first = last = move - 1
            while self.kind(first - 1) == "part" and first - 1 not in used and self.joined(first - 1, BETWEEN_PARTS):
                first -= 1
            return list(range(first, last + 1))
        if self.kind(move + 1) == "part" and self.joined(move, BEFORE_PART):
            first = last = move + 1
            while self.kind(last + 1) == "part" and self.joined(last, BETWEEN_PARTS):
                last += 1
            # "raised brows and chin lowering": the last part belongs to the movement after it
            if last > first and self.kind(last + 1) == "move" and self.joined(last, BEFORE_MOVE):
                last -= 1
            return list(range(first, last + 1))
        return []


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
