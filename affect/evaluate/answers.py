"""From answer text to labels: given lists of labels, named labels, and what a labelling language model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from affect.evaluate.errors import LabelError

_NEGATING = r"(?:\b(?:not(?! only| just| merely)|no(?! doubt)|never|neither|nor|cannot|without|hardly|barely)|n['’]t)\b"
_INSTEAD = r"\b(?:rather than|instead of|free of|free from|lack of|absence of)"
_NEW_CLAUSE = r"(?!but\b|yet\b|though\b|because\b|so\b|and (?:is|are|was|feels?|seems?|appears?|looks?|shows?)\b)"
_BETWEEN = rf"(?:[ \t-]+{_NEW_CLAUSE}[\w'’]+){{0,3}}[ \t-]*$"
_NEGATION = re.compile(rf"(?:{_NEGATING}|{_INSTEAD}){_BETWEEN}", re.IGNORECASE)
"""A negating word at most three words before a label, in the same clause."""
_LONGEST_NEGATION = 80
"""Characters before a label in which a negation is looked for."""

_PREFIXES = ("输入", "输出", "翻译", "让我们来翻译一下：", "output", "Output", "input", "Input")


def split_labels(answer: Any) -> list[str]:
    """Return the labels of an answer that is a list: "['happy', 'sad']", "happy, sad" or a list or array.

    The published rule: of a string, one "[" at its very start and one "]" at its very end are dropped, and what
    is left is split at commas and quotes, nothing else; lists are returned as they are; "", None and NaN give
    no labels. Raises LabelError for a lone "[", a number, or anything else.
    """
    if isinstance(answer, str):
        if answer == "[":
            raise LabelError('found a lone "[": expected labels such as "[happy, sad]", or "[]" for none; correct it')
        pieces = re.split("['\",]", answer.removeprefix("[").removesuffix("]"))
        return [piece.strip() for piece in pieces if piece.strip()]
    if answer is None or (isinstance(answer, float) and answer != answer):
        return []
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(answer, list | tuple) and all(isinstance(label, str) for label in answer):
        return list(answer)
    raise LabelError(f'found {answer!r}: expected labels such as "[happy, sad]" or a list of words; correct it')


def clean_model_answer(text: str) -> str:
    """Return what a labelling language model wrote without the words and colons that some put before it.

    The published rule: each of some leading words is dropped once, in a fixed order, then one colon, then one
    full-width colon; line breaks vanish.
    """
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    text = text.strip().removeprefix(":").removeprefix("：")
    return text.strip().replace("\n", "").strip()


def is_negated(text: str, start: int) -> bool:
    """Whether the word that starts at a place in a text is negated there ("not angry", "isn't really angry")."""
    return _NEGATION.search(text, max(0, start - _LONGEST_NEGATION), start) is not None


def find_labels(text: str, labels: Sequence[str]) -> list[str]:
    """Return which of `labels` a text names, in its order, without those that it negates ("not angry")."""
    pattern = r"\b(?:" + "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True)) + r")\b"
    text = text.lower()
    named = [match[0] for match in re.finditer(pattern, text) if not is_negated(text, match.start())]
    return list(dict.fromkeys(named))


def conclusion(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that a reasoning text ends on, or None when it names none of them."""
    named = [label for sentence in re.split(r"[.!?]", text) for label in find_labels(sentence, labels)]
    return named[-1] if named else None
