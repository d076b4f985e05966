import json

import pytest

from affect.data.manifest import read_table
from affect.evaluate.answers import conclusion
from affect.evaluate.emotion_wheel import ew_scores, hit_scores
from affect.evaluate.vocabulary import Vocabulary
from extractors.au.templates import describe_frame


@pytest.fixture(scope="module")
def vocabulary(wheels):
    return Vocabulary(wheels)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[happy, sad]", ["happy", "sad"]),
        ('["happy", "sad"]', ["happy", "sad"]),
        ("[serious, blorp, at ease]", ["serious", "at ease"]),
        ("anger, resentment, and excitement.", ["anger", "resentment", "excitement"]),
        ("This person shows: happy, reluctant.", ["happy", "reluctant"]),
        ("He is not angry, but sad.", ["sad"]),
        ("She isn't really happy.", []),
        ("not only happy but also surprised", ["happy", "surprised"]),
        ("The voice is loud; he feels let down, lonely and helpless because his friend left.", 3),
        ('She says "I am so happy for all of you", yet she looks sad.', ["sad"]),
        ("The brows are relaxed, the lips open and focused on the front.", []),
        ("The lip corner depression and a help for the cheeks.", []),
        ("", []),
    ],
)
def test_feelings_are_found_and_what_is_none_is_not(vocabulary, text, found):
    labels = vocabulary.find(text)
    assert len(labels) == found if isinstance(found, int) else labels == found


def test_words_that_are_feelings_only_now_and_then_need_a_cue(vocabulary):
    assert vocabulary.find("The mouth is open.") == []
    assert vocabulary.find("The person feels open.") == ["open"]


def test_sentences_about_muscles_name_no_feeling(vocabulary):
    for active in ({"AU12_r": 2.5, "AU06_r": 1.1}, {"AU15_r": 4.0}, {"AU04_r": 1.0, "AU07_r": 2.0, "AU23_r": 1.4}, {}):
        assert vocabulary.find(describe_frame(active)) == []


def test_real_reasoning_is_understood_where_splitting_it_is_not(shared, wheels, vocabulary):
    cases = json.loads((shared / "goldens/metrics/hitrate.json").read_text())["cases"]
    texts = next(case for case in cases if "tail of its own reasoning" in case["desc"])
    labels = {name: vocabulary.find(text) for name, text in texts["name2pred"].items()}
    assert texts["mean_over_5_wheels"]["hitrate"] < 0.1
    assert hit_scores(texts["name2gt"], labels, wheels).values["hitrate"] > 0.9


@pytest.mark.parametrize(
    ("labels", "sentiment"),
    [
        (["joy"], "positive"),
        (["anger", "sadness", "joy"], "negative"),
        (["joy", "sadness"], "neutral"),
        (["surprise"], "neutral"),
        (["excited"], "positive"),
        (["fear"], "negative"),
        (["neutral"], "neutral"),
        (["Positive"], "positive"),
        (["negative"], "negative"),
        ([], "neutral"),
    ],
)
def test_sentiment_is_what_most_labels_are(vocabulary, labels, sentiment):
    assert vocabulary.sentiment(labels) == sentiment


def test_emotions_of_meld_have_the_sentiment_that_people_gave_them(shared, vocabulary):
    table = read_table(shared / "data/text/MELD_dev_sent_emo.csv")
    table = table[table["Emotion"] != "surprise"]  # which people found good as often as bad
    found = [vocabulary.sentiment([emotion]) for emotion in table["Emotion"]]
    assert len(found) > 900 and found == list(table["Sentiment"])


def test_vocabulary_and_given_labels_end_alike(vocabulary):
    text = "A happy tune plays. Still, the person feels sad."
    assert vocabulary.find(text)[-1] == conclusion(text, ["happy", "sad"])


def test_lists_of_real_models_score_alike_read_as_text(shared, wheels, vocabulary):
    cases = json.loads((shared / "goldens/metrics/ew_ovmerd_baselines.json").read_text())["cases"]
    for case in cases:
        read = {name: vocabulary.find(answer) for name, answer in case["name2pred"].items()}
        given, found = (ew_scores(case["name2gt"], said, wheels).values["fscore"] for said in (case["name2pred"], read))
        assert abs(given - found) < 0.01
