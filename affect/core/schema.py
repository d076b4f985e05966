"""The words that every other module speaks: modality, clip, sample, batch, placeholder token."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this floor imports no torch
    import numpy as np
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


@dataclass
class Batch:
    """Padded samples: prompts first, answers after them, features under masks."""

    names: list[str]
    input_ids: Tensor
    """[B, L] token ids with placeholder tokens in place."""
    attention_mask: Tensor
    """[B, L], 1 for tokens to attend to."""
    labels: Tensor
    """[B, L] token ids of the answer, -100 elsewhere."""
    features: dict[Modality, Tensor]
    """Modality -> [B, T, D], padded with zeros."""
    masks: dict[Modality, Tensor]
    """Modality -> [B, T] bool, False for padding and for absent modalities."""
    prompts: list[str] = field(default_factory=list)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed."""
        return replace(
            self,
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            labels=change(self.labels),
            features={stream: change(tensor) for stream, tensor in self.features.items()},
            masks={stream: change(tensor) for stream, tensor in self.masks.items()},
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; a loader with `pin_memory` asks its batches for it."""
        return self.each(lambda tensor: tensor.pin_memory())


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
