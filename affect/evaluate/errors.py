"""What cannot be scored, and how that is called where the published scorer only breaks down.

| published scorer | here | when |
|---|---|---|
| KeyError | MissingNamesError | a labelled clip (or a name asked for) has no answer or no label |
| IndexError | LabelError | an answer is a lone "[" |
| TypeError | LabelError | an answer is a number |
| IndexError | NothingToScoreError | no clip has a valence other than zero |
| ValueError | NothingToScoreError | a data set has no checkpoint to choose from |
| ZeroDivisionError | NothingToScoreError | nothing to divide into batches |

A mean of nothing is no error there and none here: it is NaN.
"""

from __future__ import annotations

from collections.abc import Container, Iterable


class LabelError(ValueError):
    """A value that is no label, no list of labels and no valence."""


class NothingToScoreError(ValueError):
    """There is nothing that a score could be made of."""


class MissingNamesError(ValueError):
    """Clips that lack an answer or a label; `names` has all of them."""

    def __init__(self, what: str, names: list[str]) -> None:
        self.names = names
        super().__init__(f"{clips_have(names)} no {what}: expected one for every name; add it or leave the clip out")


def require_names(wanted: Iterable[str], what: str, *tables: Container[str]) -> None:
    """Raise MissingNamesError when one of the tables lacks some of the names."""
    if missing := [name for name in wanted if any(name not in table for table in tables)]:
        raise MissingNamesError(what, missing)


def clips_have(names: list[str], shown: int = 20) -> str:
    """Return the subject and verb of a sentence about some clips: `2 clips (a, b) have`."""
    listed = f"({', '.join(names[:shown])}{' …' if len(names) > shown else ''})"
    return f"{len(names)} clips {listed} have" if len(names) > 1 else f"1 clip {listed} has"
