"""Encoders: frames, sound clips or sentences of many clips in, one float32 array [T, D] a clip out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from affect.schema import Modality
from affect.weights import resolve_weights
from extractors.encoders.embedded import DctEncoder, HashedNgramEncoder, ProsodyEncoder

EMBEDDED = {
    Modality.FRAME: DctEncoder,
    Modality.FACE: DctEncoder,
    Modality.AUDIO: ProsodyEncoder,
    Modality.AU: HashedNgramEncoder,
}
"""The encoder of each modality that needs no weights."""

PRETRAINED = {
    Modality.FRAME: "CLIP_VIT_LARGE",
    Modality.FACE: "CLIP_VIT_LARGE",
    Modality.AUDIO: "HUBERT_LARGE",
    Modality.AU: "CLIP_VITB32",
}
"""The name under which published features of each modality are stored."""


class Encoder(Protocol):
    """Turns the raw material of clips into features.

    Items are uint8 RGB [T, H, W, 3] for frames and faces, float32 [C, N] at 16 kHz or None (no
    sound) for audio, lists of N sentences for AU. A batch gives what its items give one by one.
    """

    name: str
    dim: int

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values: family, weights hash, layer, pooling and so on."""

    def __call__(self, items: Sequence[Any]) -> list[np.ndarray]:
        """Return float32 [T, dim] for each item, [0, dim] for an empty one."""


def build_encoder(modality: Modality | str, name: str, device: str = "cpu", weights: str | None = None) -> Encoder:
    """Return the encoder of a modality by name: an embedded one, a known pretrained one, or any folder or hub id.

    `weights` says where they are; without it `affect.weights.resolve_weights` does. Raises
    ValueError for a name of another modality, WeightsError where no fitting weights are found.
    """
    modality = Modality(modality)
    if modality not in EMBEDDED:
        raise ValueError(
            f"modality {modality!s} has no encoder: expected one of {', '.join(EMBEDDED)}; correct the config"
        )
    if name == EMBEDDED[modality].name:
        return EMBEDDED[modality]()
    if name in {encoder.name for encoder in EMBEDDED.values()} | set(PRETRAINED.values()) - {PRETRAINED[modality]}:
        raise ValueError(
            f"encoder {name} is not one for {modality!s}: expected {EMBEDDED[modality].name}, {PRETRAINED[modality]}, "
            "or a folder or hub id of weights; correct the config"
        )
    source = weights or resolve_weights(name)
    # torch is imported only where a family needs it
    if modality == Modality.AUDIO:
        from extractors.encoders.hf_audio import HubertEncoder

        return HubertEncoder(name, source, device)
    if modality == Modality.AU:
        from extractors.encoders.open_clip_text import OpenClipTextEncoder

        return OpenClipTextEncoder(name, source, device)
    from extractors.encoders.hf_vision import ClipVisionEncoder

    return ClipVisionEncoder(name, source, device)
