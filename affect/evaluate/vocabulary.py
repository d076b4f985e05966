"""From free text to labels without weights: the words of the emotion wheels, where a text speaks of a feeling.

The wheel tables know many words that are feelings only now and then ("open", "help", "focused", "going").
Words of `FEELINGS` count wherever they stand; all others count in a list after words such as "feels", and in a
text that is nothing but a list. Words in quotation marks are speech and do not count, nor do negated ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from affect.data.known_datasets import NEGATIVE, NEUTRAL, POSITIVE
from affect.evaluate.answers import is_negated
from affect.evaluate.emotion_wheel import LEVELS, EmotionWheels

_FEELINGS = """
afraid aggravated aggrieved agitated alarmed amazed amazement amused anger angered angry anguish annoyed anxiety
anxious apathetic apologetic appalled apprehension apprehensive ashamed astonished astonishment astounded awe
awestruck awkward baffled bewildered bliss blissful bored calm cheerful concerned confident confused contemptuous
content contented curious dejected delight delighted delightful depressed despair despondent disappointed
disapproving discontent discontented discouraged disdainful disgruntled disgust disgusted disheartened dismayed
displeased dissatisfied distress distressed distrustful doubtful dread eager ecstatic elated elation embarrassed
enraged enthusiastic envious exasperated excited exhilarated fear fearful flustered frightened frustrated furious
fury gleeful gloomy grateful gratified grief guilty happiness happy hate hateful hatred heartbroken helpless
hesitant hopeful hopelessness horrified hostile humiliated hurt impatient indifferent indignant indignation
infuriated insecure irritated irritation jealous jovial joy joyful jubilant light-hearted livid loathing lonely love
loving melancholic melancholy miserable misery mortified mournful nervous nostalgic optimistic outraged overjoyed
overwhelmed panicked peaceful perplexed petrified playful pleased proud puzzled rage reassured regret regretful
relief relieved reluctant remorseful resentful resentment restless revulsion sad sadness sarcastic satisfied scared
scornful serene shocked shy skeptical sorrow sorrowful speechless startled stressed stunned surprised suspicious
sympathy terrified terror thankful thrilled timid tormented tranquil troubled uncertain uncomfortable uneasy unhappy
unsettled upset vexed wary worried worry wrath wretched
"""
FEELINGS = frozenset(_FEELINGS.split())
"""Names in the wheel tables that are a feeling wherever they stand."""

_NOT_ALONE_WORDS = """
cheer cheers content contents depress depresses depressing depression help helped helping helps hope hoped hopes
hoping love lovely loves play played playing plays rest rested resting rests thank thanked thanking thanks
"""
_NOT_ALONE = frozenset(_NOT_ALONE_WORDS.split())
"""Forms of those names that are often something else ("lip corner depression")."""

_CUE = re.compile(
    r"\b(?:feel(?:s|ing|ings)?|felt|emotions?|emotional (?:state|states|tone)|moods?|seem(?:s|ed|ing)?|"
    r"appear(?:s|ed|ing)?|look(?:s|ed|ing)?|sound(?:s|ed|ing)?|express(?:es|ed|ing)?|expressions? of|"
    r"(?:sense|hint|sign|signs|trace|touch|feeling|mix|mixture|air) of|labels?|shows(?=:)|"
    r"(?:he|she|they|person|man|woman|speaker|character|individual|subject) (?:is|are|was|were))\b",
    re.IGNORECASE,
)
"""Words after which a list of feelings may stand."""

_FILLER_WORDS = """
a also an and as at be being bit both but clearly combination deep deeply emotion emotional emotions even extremely
fairly feeling feelings genuinely her his in include includes including is kind label labels lack like little mainly
maybe mild mix mixed mixture mood more most mostly of one or overall perhaps person possibly pretty probably quite
rather really relatively sense shows slight slightly so some somewhat sort state states strong strongly such that
the their then this to towards very visibly with
"""
_FILLERS = frozenset(_FILLER_WORDS.split())
"""Words that may stand between a cue and a feeling, or between two feelings."""

_SPEECH = re.compile(r"\"[^\"]*\s[^\"]*\s[^\"]*\"|“[^”]*”")
"""Three or more quoted words; quoted single words may be labels."""
_SENTENCE = re.compile(r"[^.!?;\n]+")
_WORD = re.compile(r"\w+")


class Vocabulary:
    """Finds the words of the emotion wheels in free text."""

    def __init__(self, wheels: EmotionWheels) -> None:
        self._wheels = wheels
        self._forms = {tuple(_WORD.findall(form)): form for form in wheels.clusters[1]}
        self._longest = max(map(len, self._forms), default=0)
        self._feelings = {
            form for form in wheels.clusters[1] if form not in _NOT_ALONE and FEELINGS.intersection(wheels.names[form])
        }

    def find(self, text: str) -> list[str]:
        """Return the labels that a text names of the person, in its order, each once."""
        text = _SPEECH.sub(lambda match: " " * len(match[0]), text.lower())
        found: list[str] = []
        listed = self._is_list(text)
        for sentence in _SENTENCE.finditer(text):
            found += self._find_in_sentence(text, *sentence.span(), listed)
        return list(dict.fromkeys(found))

    def sentiment(self, labels: Iterable[str]) -> str:
        """Return what most labels are: positive, negative or, with no majority, neutral.

        A label counts as the first wheel has it, where joy and excitement are good, other surprise neither, and
        all else bad.
        """
        balance = 0
        for label in labels:
            word = label.lower().strip()
            cluster, below = (self._wheels.cluster(word, 1, level) for level in LEVELS)
            if word == POSITIVE or cluster == "happy" or below == "excited":
                balance += 1
            elif word == NEGATIVE or cluster not in (None, "surprised"):
                balance -= 1
        return POSITIVE if balance > 0 else NEGATIVE if balance < 0 else NEUTRAL

    def _find_in_sentence(self, text: str, start: int, end: int, listed: bool) -> list[str]:
        """Return the labels of one sentence; `listed`: the whole text is a list of labels."""
        cued = {match.end() for match in _CUE.finditer(text, start, end)}
        words = list(_WORD.finditer(text, start, end))
        found, in_list, i = [], listed, 0
        while i < len(words):
            length, form = self._longest_form(words, i)
            counts = form is not None and (
                form in self._feelings or (in_list and (length > 1 or words[i][0] not in _FILLERS))
            )
            if counts and not is_negated(text, words[i].start()):
                found.append(form)
            in_list = in_list and (counts or words[i][0] in _FILLERS)
            i += length if counts else 1
            in_list = in_list or listed or words[i - 1].end() in cued
        return found

    def _longest_form(self, words: list[re.Match[str]], start: int) -> tuple[int, str | None]:
        """Return how many words from a place on are the longest form there, and that form."""
        for length in range(min(self._longest, len(words) - start), 0, -1):
            form = self._forms.get(tuple(word[0] for word in words[start : start + length]))
            if form:
                return length, form
        return 1, None

    def _is_list(self, text: str) -> bool:
        """Whether a text is in brackets, or consists of labels and the words that join them."""
        if text.strip().startswith("[") and text.strip().endswith("]"):
            return True
        words, i = list(_WORD.finditer(text)), 0
        while i < len(words):
            length, form = self._longest_form(words, i)
            if form is None and words[i][0] not in _FILLERS:
                return False
            i += length
        return True
