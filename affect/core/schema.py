"""The words that every other module speaks: modality, clip, sample, batch, placeholder token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # this floor imports no torch
    import numpy as np
    import torch
    from torch import Tensor


class Modality(StrEnum):
    """One stream of a clip; the value is the word used in file names, YAML and prompts."""

    AUDIO = "audio"
    FRAME = "frame"
    FACE = "face"
    MULTI = "multi"
    AU = "au"
    IMAGE = "image"


STORED_MODALITIES = (Modality.FRAME, Modality.FACE, Modality.AUDIO, Modality.AU)
"""Modalities that are extracted from clips; MULTI is made by the model from the others, and the features of single
pictures (IMAGE) are brought along by who has them."""

STREAM_WORDS: dict[Modality, str] = {
    Modality.AUDIO: "sound",
    Modality.FRAME: "scene",
    Modality.FACE: "face",
    Modality.MULTI: "pictures and sound together",
    Modality.AU: "action units",
    Modality.IMAGE: "picture",
}
"""What a stream is called where users read of it."""

AU_VALUES = "AU_VALUES"
"""The encoder of action units that gives what was measured, not sentences; its rows have no common length."""

UNMEASURED = -1e4
"""What a feature holds that nobody measured, since stored arrays are finite; a model reads the mean there."""

PLACEHOLDERS: dict[Modality, str] = {
    Modality.AUDIO: "<AudioHere>",
    Modality.FRAME: "<FrameHere>",
    Modality.FACE: "<FaceHere>",
    Modality.MULTI: "<MultiHere>",
    Modality.AU: "<AUHere>",
    Modality.IMAGE: "<ImageHere>",
}
"""Prompt token whose embedding the model replaces by a fused token of that modality."""

SPECIAL_TOKENS = (
    "<ImageHere>",
    "<AudioHere>",
    "<FrameHere>",
    "<FaceHere>",
    "<MultiHere>",
    "<NonverbalHere>",  # unused, but released checkpoints count it
    "<AUHere>",
)
"""Tokens added to every tokenizer, in this order (released checkpoints depend on the first six)."""


@dataclass(frozen=True)
class Clip:
    """One utterance of one person: what the tables say of it, before any feature is read."""

    name: str
    dataset: str
    subtitle: str = ""
    labels: tuple[str, ...] = ()
    """Open-vocabulary emotion words, most important first."""
    description: str = ""
    """Reasoning text that ends in the emotion."""
    valence: float | None = None
    split: str = ""
    nonverbal: str | None = None
    """Its action units in words, where prompts show them so; '' where there are none, None where nobody looked."""


@dataclass
class Sample:
    """A clip with its features and, for training, the question and answer drawn for it."""

    clip: Clip
    features: dict[Modality, np.ndarray]
    """Modality -> [T, D]; T is 0 where the clip has none of that modality (no face, no sound)."""
    prompt: str
    answer: str = ""
    spoken: tuple[int, int] = (0, 0)
    """Characters of the prompt that are the subtitle: the first one and the one after the last."""
    told: tuple[int, int] = (0, 0)
    """Characters of the prompt that are the caption of the action units."""


class Tensors:
    """A dataclass of tensors, and of dicts of them, that is pinned and moved as a whole."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with every tensor changed."""
        return replace(self, **{name: _each(value, change) for name, value in vars(self).items()})

    def pin_memory(self) -> Self:
        """Return the same in page-locked memory; a loader with `pin_memory` asks its batches for it."""
        return self.each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> Self:
        """Return the same on a device, without waiting for what was pinned."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {name: _each(part, change) for name, part in value.items()}
    return change(value) if hasattr(value, "pin_memory") else value


@dataclass
class Batch(Tensors):
    """Padded samples: prompts first, answers after them, features under masks, and what is known of them.

    What the network must know to be called is here in main memory or as places to read and write, so that it never
    asks a device and waits.
    """

    names: list[str]
    input_ids: Tensor
    """[B, L] token ids with placeholder tokens in place."""
    attention_mask: Tensor
    """[B, L], 1 for tokens to attend to."""
    labels: Tensor
    """[B, L] token ids of the answer, -100 elsewhere."""
    answers: Tensor
    """[M] places in [B * L] from which the tokens of the answers are foretold: those before them."""
    padding: int
    """How many of the B * L cells are empty."""
    features: dict[Modality, Tensor]
    """Modality -> [B, T, D], padded with zeros."""
    masks: dict[Modality, Tensor]
    """Modality -> [B, T] bool, False for padding and for absent modalities."""
    lengths: dict[Modality, list[int]]
    """Modality -> steps that each clip has of it."""
    rows: dict[Modality, Tensor]
    """Stream that a prompt shows -> [N] which prompts do."""
    places: dict[Modality, Tensor]
    """Stream that a prompt shows -> [N, Q] places in [B * L] of its placeholders."""
    left_out: list[int] = field(default_factory=list)
    """Words of each clip that its prompt has no room for: its subtitle's first ones, then its caption's last ones."""


_SAFE_NAME = re.compile(r"[^\x00-\x1f/\\]+")


def check_name(name: str, what: str = "clip name") -> str:
    """Return `name` if it may become one path component.

    Raises ValueError for an empty name, `.`/`..`, path separators and control characters.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or not _SAFE_NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} cannot be used as a file name: expected a non-empty name "
            "without '/', '\\' or control characters; rename it in the table it comes from"
        )
    return name
