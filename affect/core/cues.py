"""What a text speaks of, a voice, a face, a scene or a video, and which streams show it.

One vocabulary for what a model learns and for what its answers are scored on: sentences about what a sample does not
show are left out of its text, and answers that speak of what they were not shown are counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from affect.core.facial_words import WORDS
from affect.core.schema import Modality

_SHOWN_BY: dict[str, tuple[frozenset[str], ...]] = {
    "voice": (frozenset({Modality.AUDIO}),),
    "face": (frozenset({Modality.FACE, Modality.AU, Modality.IMAGE}), frozenset({Modality.FRAME})),
    "scene": (frozenset({Modality.FRAME, Modality.IMAGE}),),
    "video": (frozenset({Modality.FACE, Modality.AU, Modality.FRAME, Modality.IMAGE}),),
}
"""What a text may speak of -> streams that show it; of several sets the first that a layout has some of, so that frames
show the face only where a model has nothing better to see it by."""

_WORDS = {
    "voice": r"voices?|vocal\w*|pitch|intonation|speech|audio|the sounds?|sounds (?!like|as)|noises?|music|volume|"
    r"loud(?:ly|er|ness)?|whisper\w*|"
    r"(?<!skin )(?<!emotional )(?<!muscle )tones?(?! of the (?:text|words|conversation))",
    "face": r"faces?|facial\w*|gaze|(?<!emotional )expressions?(?! of)",
    "scene": r"background|scene|surroundings|setting|room|postures?|gestures?|body language|shoulders?|arms?|"
    r"(?<!other )hands?|wear(?:s|ing)|dressed|clothe?s|clothing|attire",
    "video": r"videos?|footage|visual(?:s|ly)?|cameras?|on screen",
}
_PATTERNS = {what: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for what, words in _WORDS.items()}

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")
"""Words that somebody says."""
_SENTENCES = re.compile(r"(?<=[.!?。！？])(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bDr\.)\s+|\n+")


def shown_together(stream: str) -> frozenset[str]:
    """Return the streams that show the same as one: faces and action units, sound by itself."""
    return next(choices[0] for choices in _SHOWN_BY.values() if stream in choices[0])


def unshown(shown: Collection[str], missing: Collection[str]) -> list[str]:
    """Return what a prompt shows nothing of: voice, face, scene, video.

    shown and missing: streams that the prompt has, and those that it would have if the clip had them. Fused streams
    ("multi") are taken to hold all that is not missing.
    """
    found, known = [], {*shown, *missing}
    for what, choices in _SHOWN_BY.items():
        streams = next((streams for streams in choices if streams & known), choices[-1])
        if not streams & set(shown) and (Modality.MULTI not in shown or streams & set(missing)):
            found.append(what)
    return found


def absent_streams(text: str, shown: Collection[str], missing: Collection[str]) -> list[str]:
    """Return what a text speaks of although its prompt shows nothing of it, as `unshown` takes it.

    Every word for a part or a movement of the face speaks of the face, denied or not; what stands in quotation marks
    does not count.
    """
    text = _QUOTED.sub(" ", text)
    return [what for what in unshown(shown, missing) if _speaks_of(text, what)]


def leave_out_absent(text: str, shown: Collection[str], missing: Collection[str]) -> str:
    """Return a text without the sentences that speak of what its prompt shows nothing of, as `unshown` takes it.

    A text of which nothing would be left stays whole.
    """
    if not unshown(shown, missing):
        return text
    sentences = _SENTENCES.split(text)
    kept = [sentence for sentence in sentences if not absent_streams(sentence, shown, missing)]
    return " ".join(kept) if 0 < len(kept) < len(sentences) else text


def _speaks_of(text: str, what: str) -> bool:
    if what == "face":  # a part of the face, a muscle or an action unit; a movement alone may be any other's
        named = any(not word.lastgroup.startswith("move") for word in WORDS.finditer(text))
        return named or _PATTERNS[what].search(text) is not None
    return _PATTERNS[what].search(text) is not None
