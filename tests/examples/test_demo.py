"""The demo from clips to report, and that its text teaches the language and not the rule."""

import random
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from affect.core.cues import absent_streams
from affect.data.prompts import load_prompts
from affect.evaluate.grounding import ground_answers
from examples.demo import chain as demo
from examples.demo.clips import EMOTIONS
from examples.demo.report import read_answers
from examples.demo.text import FACE_CUES, VOICE_CUES, language_corpus, reasoning

CUES = (FACE_CUES, VOICE_CUES)
ROOT = Path(__file__).resolve().parents[2]


def test_the_language_corpus_pairs_cues_and_emotions_at_random():
    corpus = language_corpus(3000, 0, load_prompts(), list(demo.LAYOUTS.values()))
    texts = [answer for _, answer in corpus if answer.count(". ") == 2]
    counts = Counter()
    for text in texts:
        (face,) = [face for face, cues in FACE_CUES.items() if any(cue in text.lower() for cue in cues)]
        (voice,) = [voice for voice, cues in VOICE_CUES.items() if any(cue in text.lower() for cue in cues)]
        counts[face, voice, text.rpartition(" feels ")[2].split(".")[0]] += 1
    assert len(counts) == 3 * 3 * 6  # every face with every voice with every emotion
    fitting = sum(n for (face, voice, emotion), n in counts.items() if EMOTIONS[emotion] == (face, voice))
    assert fitting / len(texts) == pytest.approx(1 / 9, abs=0.03)


def test_answers_of_the_language_corpus_speak_of_what_their_prompt_shows_only():
    for prompt, answer in language_corpus(500, 0, load_prompts(), list(demo.LAYOUTS.values())):
        if "feels" in answer:
            shown = ["<FaceHere>" in prompt or "<AUHere>" in prompt, "<AudioHere>" in prompt]
            assert [any(cue in answer.lower() for cue in chain(*cues.values())) for cues in CUES] == shown


def test_each_cue_is_a_sentence_of_its_stream_and_names_no_emotion():
    text = reasoning("smile", "soft", "content", random.Random(0))
    assert text.endswith("The person feels content.")
    for cues, what in zip(CUES, ("face", "voice"), strict=True):
        for cue in chain(*cues.values()):
            assert absent_streams(cue, [], []) == [what]
            assert not set(cue.split()) & set(EMOTIONS)


def test_the_demo_needs_every_stream_and_gets_it_right(tmp_path):
    """Held-out people: fused at least 0.90, every single stream at least 0.15 below it, text near chance; no answer
    speaks of what was taken away."""
    command = [sys.executable, "-m", "examples.demo", "--root", str(tmp_path / "demo"), "--seeds", "1"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    report = tmp_path / "demo" / "report.md"
    scores = {inputs: read_answers(report.parent, f"{inputs}_seed1").accuracy for inputs in demo.LAYOUTS}
    assert scores["fused"] >= 0.90
    assert all(scores[single] <= scores["fused"] - 0.15 for single in ("face", "audio", "AU", "text"))
    assert scores["text"] < 0.34
    text = report.read_text()
    for what in demo.WITHOUT:
        answers = read_answers(report.parent, "fused_seed1", what)
        assert all(answers.texts.values())  # it answers from the others
        assert ground_answers(answers.records).absent_share <= 0.02
        assert f"| {what.replace('_', ' ')} | {answers.accuracy:.2f} |" in text
    assert len(list(report.parent.glob("sample_*.png"))) == 5
    assert "training_curves_epoch8.png" in text
    assert "logistic regression" in text
    assert "speaks of the absent" in text
    assert (report.parent / "confusion.png").is_file()
