"""The demo's language: what its reasoning texts say of face, voice and emotion."""

from __future__ import annotations

import random

from affect.core.cues import leave_out_absent, shown_together
from affect.core.layouts import LAYOUTS
from affect.core.schema import Clip, Modality
from affect.data.prompts import PromptBook
from examples.demo.clips import EMOTIONS, speech

FACE_CUES = {
    "smile": (
        "the lip corners are pulled up and the cheeks are raised",
        "the cheeks lift and the mouth corners go up",
        "the mouth widens upwards below raised cheeks",
    ),
    "frown": (
        "the brows are lowered and the lip corners go down",
        "the brows draw down and the chin pushes up",
        "the mouth corners sink below lowered brows",
    ),
    "startle": (
        "the brows are raised and the jaw drops",
        "the eyes are wide open below raised brows",
        "the brows go up and the mouth falls open",
    ),
}
VOICE_CUES = {
    "lively": ("the voice is high and lively", "the pitch is high and moves a lot", "the speech is quick and bright"),
    "soft": ("the voice is low and slow", "the speech is quiet and slow", "the pitch is low and hardly moves"),
    "harsh": ("the voice is loud and rough", "the speech is fast and pressed", "the sound is loud, hard and uneven"),
}
PATTERN = "{face}. {voice}. The person feels {emotion}."
LONGEST_SUBTITLE = 80
"""Words of the longest subtitle that the language is taught with; that of an ordinary clip is shorter."""


def reasoning(face: str, voice: str, emotion: str, rng: random.Random) -> str:
    """Return a sentence with a face cue, one with a voice cue and one that names the emotion."""
    said = {"face": rng.choice(FACE_CUES[face]), "voice": rng.choice(VOICE_CUES[voice])}
    return PATTERN.format(emotion=emotion, **{what: cue[0].upper() + cue[1:] for what, cue in said.items()})


def language_corpus(count: int, seed: int, book: PromptBook, layouts: list[str]) -> list[tuple[str, str]]:
    """Return prompts and answers for teaching a small model the language, and only that.

    Cues and emotions are paired at random, so the text does not give the rule away; an answer speaks of what its
    prompt shows only. The first layout counts most. Some subtitles are long, and some are of words that nobody knows.
    """
    rng = random.Random(seed)
    dialogues = []
    for _ in range(count):
        # fused two times in three, since that is the most to learn
        layout, emotion = rng.choice(layouts[:1] * 8 + layouts[1:]), rng.choice(list(EMOTIONS))
        needed = LAYOUTS[layout].needed
        gone = [shown_together(stream) if rng.random() < 0.5 else {stream} for stream in needed if rng.random() < 0.1]
        present = [stream for stream in needed if not any(stream in streams for streams in gone)] or needed[:1]
        face, voice = rng.choice(list(FACE_CUES)), rng.choice(list(VOICE_CUES))
        text = reasoning(face, voice, emotion, rng)
        told = leave_out_absent(text, present, LAYOUTS[layout].missing(present))
        kind = "description" if rng.random() < 0.8 else "ovlabel"
        question, tokens = book.question(kind), dict.fromkeys(Modality, 1)
        prompt, _ = book.prompt(layout, present, subtitle(rng), question, tokens)
        dialogues.append((prompt, book.answer(kind, Clip("", "", labels=(emotion,), description=told))))
    return dialogues


def subtitle(rng: random.Random) -> str:
    """Return words as in the clips, or one time in six any number of words, a part of them made up."""
    if rng.random() < 5 / 6:
        return speech(rng)
    words = " ".join(speech(rng) for _ in range(LONGEST_SUBTITLE // 5)).split()[: rng.randint(1, LONGEST_SUBTITLE)]
    return " ".join("".join(rng.sample(word, len(word))) if rng.random() < 0.4 else word for word in words)
