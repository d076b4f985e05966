"""From answer text to labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NEGATING = r"\b(?:not|no|never|neither|nor|without|rather than|instead of|hardly)\b"
_NEGATION = re.compile(_NEGATING + r"(?:[ \t-]+\w+){0,2}[ \t-]*$")
"""A negating word at most two words before a label, in the same clause."""


def find_labels(text: str, labels: Sequence[str]) -> list[str]:
    """Return which of `labels` a text names, in its order, without those that it negates ("not angry")."""
    pattern = r"\b(?:" + "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True)) + r")\b"
    text = text.lower()
    named = [match[0] for match in re.finditer(pattern, text) if not _NEGATION.search(text[: match.start()])]
    return list(dict.fromkeys(named))


def conclusion(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that a reasoning text ends on, or None when it names none of them."""
    named = [label for sentence in re.split(r"[.!?]", text) for label in find_labels(sentence, labels)]
    return named[-1] if named else None
