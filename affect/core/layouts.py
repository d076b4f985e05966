"""Modality layouts: which streams a prompt shows, under the names that users' YAML files know."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from affect.core.schema import Modality

AUDIO, FRAME, FACE, AU, IMAGE = Modality.AUDIO, Modality.FRAME, Modality.FACE, Modality.AU, Modality.IMAGE


@dataclass(frozen=True)
class Layout:
    """The streams of one prompt, in the order in which it names them."""

    fused: tuple[Modality, ...] = ()
    """Streams that the pre-fusion reads together; none = no fused tokens in the prompt."""
    branches: tuple[Modality, ...] = ()
    """Streams that have tokens of their own."""
    subtitle: bool = True

    @property
    def needed(self) -> tuple[Modality, ...]:
        """Streams whose features must be read."""
        return tuple(dict.fromkeys((*self.fused, *self.branches)))

    def missing(self, present: Collection[Modality]) -> list[Modality]:
        """Return the streams of those that a clip with `present` does not have."""
        return [stream for stream in self.needed if stream not in present]

    def without(self, stream: Modality) -> Layout:
        """Return the layout without a stream."""
        parts = {part: tuple(s for s in getattr(self, part) if s != stream) for part in ("fused", "branches")}
        return replace(self, **parts)


LAYOUTS: dict[str, Layout] = {
    "textonly": Layout(),
    "audioonly": Layout(branches=(AUDIO,), subtitle=False),
    "faceonly": Layout(branches=(FACE,), subtitle=False),
    "frameonly": Layout(branches=(FRAME,), subtitle=False),
    "auonly": Layout(branches=(AU,), subtitle=False),
    "image": Layout(branches=(IMAGE,), subtitle=False),
    "audio_text": Layout(branches=(AUDIO,)),
    "face_text": Layout(branches=(FACE,)),
    "frame_text": Layout(branches=(FRAME,)),
    "au_text": Layout(branches=(AU,)),
    "audio_au_text": Layout(branches=(AUDIO, AU)),
    "face_frame_au_text": Layout(branches=(FRAME, FACE, AU)),
    "face": Layout(branches=(AUDIO, FACE)),
    "frame": Layout(branches=(AUDIO, FRAME)),
    "faceframe": Layout(branches=(AUDIO, FRAME, FACE)),
    "multiface_text": Layout((FACE, AUDIO)),
    "multiface_audio_face_text": Layout((FACE, AUDIO), (AUDIO, FACE)),
    "multiframe_audio_frame_text": Layout((FRAME, AUDIO), (AUDIO, FRAME)),
    "multiframe_audio_frame_au_text": Layout((FRAME, AUDIO, AU), (AUDIO, FRAME, AU)),
    "multiface_audio_face_frame_text": Layout((FACE, AUDIO), (AUDIO, FACE, FRAME)),
    "multiface_audio_face_au_text": Layout((FACE, AUDIO, AU), (AUDIO, FACE, AU)),
    "multiface_audio_face_frame_au_text": Layout((FACE, AUDIO, AU), (AUDIO, FACE, FRAME, AU)),
}
"""`face_or_frame` value -> layout."""

SPELLINGS = {"face_frame_audio_au": "multiface_audio_face_frame_au_text"}
"""Another spelling in users' files -> layout; that one stands for "all streams"."""
