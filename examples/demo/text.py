"""The demo's language: what its reasoning texts say of face, voice and emotion."""

from __future__ import annotations

import random

from affect.data.prompts import PromptBook
from examples.demo.clips import EMOTIONS, SUBTITLES

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
PATTERN = "{face}, and {voice}, so the person feels {emotion}."


def reasoning(face: str, voice: str, emotion: str, rng: random.Random) -> str:
    """Return a sentence that names one face cue, one voice cue and the emotion."""
    text = PATTERN.format(face=rng.choice(FACE_CUES[face]), voice=rng.choice(VOICE_CUES[voice]), emotion=emotion)
    return text[0].upper() + text[1:]


def language_corpus(count: int, seed: int, book: PromptBook) -> list[tuple[str, str]]:
    """Return prompts and answers for teaching a small model the language, and only that.

    Cues and emotions are paired at random, so the text does not give the rule away.
    """
    rng = random.Random(seed)
    dialogues = []
    for _ in range(count):
        emotion = rng.choice(list(EMOTIONS))
        if rng.random() < 0.7:
            face, voice = rng.choice(list(FACE_CUES)), rng.choice(list(VOICE_CUES))
            kind, value = "description", reasoning(face, voice, emotion, rng)
        else:
            kind, value = "ovlabel", emotion
        others = (text for name, text in book.streams.items() if name not in ("subtitle", "image"))
        streams = [text for text in others if rng.random() < 0.7]
        subtitle = book.streams["subtitle"].replace("{SUBTITLE}", rng.choice(SUBTITLES))
        prompt = book.start + "".join(streams) + subtitle + book.end.replace("{QUESTION}", book.question(kind))
        answer = book.questions[kind]["answer"].replace("{DESCRIPTION}", value).replace("{OVLABELS}", value)
        dialogues.append((prompt, answer + book.answer_end))
    return dialogues
