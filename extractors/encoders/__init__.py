"""Encoders: frames, sound clips or sentences of many clips in, one float32 array [T, D] a clip out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from affect.core.schema import AU_VALUES, Modality
from affect.core.weights import resolve_weights
from extractors.encoders.embedded import AuValuesEncoder, DctEncoder, HashedNgramEncoder, ProsodyEncoder

EMBEDDED = {
    Modality.FRAME: DctEncoder,
    Modality.FACE: DctEncoder,
    Modality.AUDIO: ProsodyEncoder,
    Modality.AU: HashedNgramEncoder,
}
"""The encoder of each modality that needs no weights."""

_PICTURES = {"CLIP_VIT_LARGE": "clip", "SIGLIP_SO": "siglip", "DINO2_LARGE": "dinov2"}
_SOUND = {"HUBERT_LARGE": "hubert", "WAVLM_LARGE": "wavlm", "DATA2VEC_BASE": "data2vec-audio"}
NAMED: dict[Modality, dict[str, str | None]] = {
    Modality.FRAME: _PICTURES,
    Modality.FACE: _PICTURES,
    Modality.AUDIO: _SOUND,
    Modality.AU: {"CLIP_VITB32": None, AU_VALUES: None},
}
"""Short names of pretrained encoders of each modality, and the type that a transformers model behind them must have."""

_PREFIX = re.compile(r"([a-z]\w+):(.+)")


class Encoder(Protocol):
    """Turns the raw material of clips into features, in two steps.

    `prepare` takes one item: uint8 RGB [T, H, W, 3] for frames and faces, float32 [C, N] at 16 kHz
    or None (no sound) for audio, a list of N sentences for AU (for AU_VALUES the AU analysis). It needs
    no torch and can be pickled, so that decode workers run it. The encoder itself takes prepared items;
    a batch gives what its items give one by one.
    """

    name: str
    dim: int
    prepare: Callable[[Any], Any]

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values: family, weights hash, layer, pooling and so on."""

    def __call__(self, items: Sequence[Any]) -> list[np.ndarray]:
        """Return float32 [T, dim] for each prepared item, [0, dim] for an empty one."""


def build_encoder(
    modality: Modality | str,
    name: str,
    device: str = "cpu",
    precision: str | None = None,
    weights: str | None = None,
) -> Encoder:
    """Return the encoder of a modality by name.

    name: an embedded one; a short name of a pretrained one; `hf:<folder or hub id>` for a model of
    transformers; `open_clip:<architecture>/<weights>`, `open_clip:<folder>` or `open_clip:<hub id>` for one
    of open_clip; for frames and faces `fer:<checkpoint>` for a network of the image track, a file or a run's
    folder. Without a prefix a folder or hub id is of transformers, for AU of open_clip.
    precision: what an encoder with weights computes in, a name of torch; None: what its device is quickest in.
    weights: where they are, with or without a prefix; without it `affect.core.weights.resolve_weights`
    says so. Raises ValueError for a name of another modality or an unknown prefix, WeightsError
    where no fitting weights are found.
    """
    modality = Modality(modality)
    if modality not in EMBEDDED:
        raise ValueError(
            f"modality {modality!s} has no encoder: expected one of {', '.join(EMBEDDED)}; correct the config"
        )
    if name == EMBEDDED[modality].name:
        return EMBEDDED[modality]()
    if modality == Modality.AU and name == AU_VALUES:
        return AuValuesEncoder()
    known = {encoder.name for encoder in EMBEDDED.values()}.union(*NAMED.values())
    if name in known - NAMED[modality].keys():
        raise ValueError(f"encoder {name} is not one for {modality!s}: {_expected(modality)}; correct the config")
    family, source = _family_and_source(modality, name, weights or resolve_weights(name))
    # torch is imported only where a family needs it
    if family == "fer":
        from extractors.encoders.fer import FerEncoder

        return FerEncoder(name, source, device, precision)
    if family == "hf":
        from extractors.encoders import hf

        kinds = {Modality.AUDIO: hf.HfAudioEncoder, Modality.AU: hf.HfTextEncoder}
        return kinds.get(modality, hf.HfVisionEncoder)(name, source, device, precision, NAMED[modality].get(name))
    from extractors.encoders import openclip

    kind = openclip.OpenClipTextEncoder if modality == Modality.AU else openclip.OpenClipVisionEncoder
    return kind(name, source, device, precision)


def _family_and_source(modality: Modality, name: str, source: str) -> tuple[str, str]:
    """Return the library, hf, open_clip or fer, and the place of the weights without a prefix."""
    prefixes = {Modality.AUDIO: ("hf",), Modality.AU: ("hf", "open_clip")}.get(modality, ("hf", "open_clip", "fer"))
    family = "open_clip" if modality == Modality.AU else "hf"
    for text in (name, source):  # what is said of the weights comes last and counts
        if text.endswith(":"):
            raise ValueError(f"encoder {text}: found nothing behind the prefix; for {modality!s} {_expected(modality)}")
        if match := _PREFIX.fullmatch(text):
            family = match[1]
            if family not in prefixes:
                raise ValueError(
                    f"encoder {text}: found the prefix {family!r}; for {modality!s} {_expected(modality)}; "
                    "correct the config"
                )
    match = _PREFIX.fullmatch(source)
    return family, match[2] if match else source


def _expected(modality: Modality) -> str:
    places = "hf:<folder or hub id>"
    if modality != Modality.AUDIO:
        places += ", open_clip:<architecture>/<weights>"
    if modality in (Modality.FRAME, Modality.FACE):
        places += ", fer:<checkpoint>"
    return (
        f"expected {', '.join([EMBEDDED[modality].name, *NAMED[modality]])}, {places}, or a folder or hub id of weights"
    )
