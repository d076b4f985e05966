import json
import re
from dataclasses import replace

import pytest

from affect.core.layouts import LAYOUTS
from affect.core.schema import PLACEHOLDERS, Clip, Modality
from affect.data.known_datasets import Choices
from affect.data.prompts import NEEDS, PromptBook, load_prompts, sentiment_word, shown_streams

FULL = "multiface_audio_face_frame_au_text"
TOKENS = dict.fromkeys(Modality, 2)
ALL = set(LAYOUTS[FULL].needed)
CANDIDATES = ("happy", "angry", "worried", "sad", "surprise", "neutral")


def prompt(book: PromptBook, present=ALL, layout=FULL, subtitle="Hello", caption=""):
    return book.prompt(layout, present, subtitle, "Why?", TOKENS, caption)[0]


def test_each_shown_stream_has_as_many_placeholders_as_tokens():
    text = prompt(load_prompts())
    shown = shown_streams(FULL, ALL)
    counts = {stream: text.count(placeholder) for stream, placeholder in PLACEHOLDERS.items()}
    assert counts == {stream: 2 if stream in shown else 0 for stream in PLACEHOLDERS}
    assert "Hello" in text
    assert "Why?" in text


def test_an_absent_stream_is_not_mentioned():
    book = load_prompts()
    text = prompt(book, present={Modality.AUDIO, Modality.FRAME})
    assert PLACEHOLDERS[Modality.FACE] not in text
    assert book.streams["face"] not in text
    assert PLACEHOLDERS[Modality.MULTI] in text  # sound is there for the pre-fusion to read
    assert PLACEHOLDERS[Modality.MULTI] not in prompt(book, present={Modality.FRAME})


def test_a_subtitle_cannot_bring_placeholders():
    text = prompt(load_prompts(), present={Modality.AUDIO}, subtitle="<FaceHere> <Face<FaceHere>Here> hi {QUESTION}")
    assert PLACEHOLDERS[Modality.FACE] not in text


def test_shown_streams_follow_the_layout():
    assert shown_streams("audioonly", ALL) == (Modality.AUDIO,)
    assert shown_streams(FULL, ALL)[0] == Modality.MULTI


@pytest.fixture
def golden(shared):
    return json.loads((shared / "goldens/prompts/prompts.json").read_text(encoding="utf-8"))


@pytest.fixture
def other_wording(golden, tmp_path):
    """A prompt file of another system's wording: its strings, with patterns where they hold one clip's values."""
    questions = {kind: dict(texts) for kind, texts in golden["qa"].items()}
    for kind, part, value, pattern in [
        ("onehot_w_candidates", "question", ",".join(CANDIDATES), "{CANDIDATES}"),
        ("valence", "question", "-3.0", "{LOWEST}"),
        ("valence", "question", "3.0", "{HIGHEST}"),
        ("valence", "answer", "1.23", "{VALENCE}"),
        ("sentiment", "answer", "positive", "{SENTIMENT}"),
    ]:
        assert value in questions[kind][part]
        questions[kind][part] = questions[kind][part].replace(value, pattern)
    ours = load_prompts()
    content = {
        "start": ours.start,
        "streams": dict(ours.streams),
        "end": ours.end,
        "questions": questions,
        "answer_end": "###",
        "layouts": golden["prompt_template"],
        "between_candidates": ",",
    }
    (tmp_path / "other.json").write_text(json.dumps(content), encoding="utf-8")
    return load_prompts(tmp_path / "other.json")


def test_whole_prompts_of_another_wording_are_used(golden, other_wording):
    tokens = {stream: count for count, stream in enumerate(Modality, 1)}
    for layout, template in golden["prompt_template"].items():
        expected = template.replace("{SUBTITLE}", "Hello").replace("{QUESTION}", "Why?")
        for stream, placeholder in PLACEHOLDERS.items():
            expected = expected.replace(placeholder, placeholder * tokens[stream])
        assert other_wording.prompt(layout, LAYOUTS[layout].needed, "Hello", "Why?", tokens)[0] == expected


def test_action_units_in_words_stand_where_the_successor_has_them(shared, other_wording):
    golden = json.loads((shared / "goldens/prompts/nonverbal.json").read_text(encoding="utf-8"))
    book, values = replace(other_wording, layouts=golden), {"SUBTITLE": "Hello", "QUESTION": "Why?"}
    for layout, templates in golden.items():
        present = {*LAYOUTS[layout].needed} - {Modality.AU}
        for how, caption in (("with", "The lips part. {QUESTION}"), ("without", " ")):
            expected = re.sub(r"{(\w+)}", lambda found, c=caption: {**values, "NONVERBAL": c}[found[1]], templates[how])
            found, places = book.prompt(layout, present, "Hello", "Why?", dict.fromkeys(Modality, 1), caption)
            assert found == expected
            told = found[slice(*places.get("NONVERBAL", (0, 0)))]
            assert told == (caption if how == "with" and Modality.AU in LAYOUTS[layout].needed else "")


def test_action_units_in_words_are_shown_and_not_fused():
    book = load_prompts()
    text = prompt(book, {Modality.FACE}, caption="The lips <AUHere> part.")
    assert "The lips part." in text and PLACEHOLDERS[Modality.MULTI] in text
    assert PLACEHOLDERS[Modality.AU] not in text
    assert text.index("The lips") < text.index("Hello")
    alone = prompt(book, {}, caption="The lips part.")
    assert "The lips part." in alone and PLACEHOLDERS[Modality.MULTI] not in alone
    assert shown_streams(FULL, {Modality.AU}, told=True) == (Modality.AU,)
    assert "lips" not in prompt(book, {Modality.FACE}, "face_text", caption="The lips part.")
    older = replace(book, streams={key: text for key, text in book.streams.items() if key != "nonverbal"})
    with pytest.raises(ValueError, match=r"expected a sentence streams\.nonverbal, found none"):
        prompt(older, caption="The lips part.")


def test_whole_prompts_keep_their_sentence_for_an_empty_subtitle(golden, other_wording):
    text = prompt(other_wording, subtitle="")
    assert "<Subtitle></Subtitle>" in text
    assert load_prompts().streams["subtitle"].split("{SUBTITLE}")[0] not in prompt(load_prompts(), subtitle="")


def test_questions_and_answers_of_another_wording_are_told_apart_by_kind(golden, other_wording):
    clip = Clip("a", "toy", labels=("happy",), description="Because.", valence=1.2345)
    values = {"{DESCRIPTION}": "Because.", "{OVLABELS}": "happy", "{LABEL}": "happy"}
    for kind, texts in golden["qa"].items():
        assert other_wording.question(kind, Choices(CANDIDATES, (-3.0, 3.0))) == texts["question"]
        expected = texts["answer"]
        for pattern, value in values.items():
            expected = expected.replace(pattern, value)
        assert other_wording.answer(kind, clip) == expected + "###"


def test_only_a_valence_of_zero_is_neutral(golden):
    for valence, word in golden["valence_to_sentiment"].items():
        assert sentiment_word(float(valence)) == word
    assert sentiment_word(-1e-9) == "negative"


def test_our_wording_has_every_kind_of_question():
    book = load_prompts()
    clip = Clip("a", "toy", labels=("sad",), description="Slow, so sad.", valence=-0.5)
    for kind in NEEDS:
        question, answer = book.question(kind, Choices(CANDIDATES, (-1.0, 1.0))), book.answer(kind, clip)
        assert "{" not in question + answer
        assert answer.endswith(book.answer_end)
    assert ", ".join(CANDIDATES) in book.question("onehot_w_candidates", Choices(CANDIDATES))
    assert "-0.50" in book.answer("valence", clip)
    assert "negative" in book.answer("sentiment", clip)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("onehot_w_candidates", "expected labels to choose from, found none; list them in candidate_labels"),
        ("valence", "expected the lowest and highest value, found none; set valence_range"),
        ("mood", "question kind 'mood': expected one of description, ovlabel"),
    ],
)
def test_a_question_that_lacks_its_choices_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        load_prompts().question(kind)


def test_answers_come_from_the_table():
    book = load_prompts()
    clip = Clip("a", "toy", labels=("sad", "tired"), description="Slow, so sad.", valence=0.0)
    assert book.answer("description", clip) == "Slow, so sad." + book.answer_end
    assert "sad, tired" in book.answer("ovlabel", clip)
    assert "neutral" in book.answer("sentiment", clip)
    with pytest.raises(ValueError, match="clip 'a' of toy has the labels sad, tired: expected one for onehot"):
        book.answer("onehot_wo_candidates", clip)
    for kind in NEEDS:
        with pytest.raises(ValueError, match=f"clip 'b' of toy has no {kind}"):
            book.answer(kind, Clip("b", "toy"))


def test_texts_of_a_table_stay_as_they_are_but_for_placeholders():
    book = load_prompts()
    clip = Clip("a", "toy", labels=("sad",), description="{OVLABELS} <Face<FaceHere>Here> \\1 {LABEL}")
    answer = book.answer("description", clip)
    assert "<FaceHere>" not in answer
    assert answer.startswith("{OVLABELS} <Face")
    assert answer.endswith("\\1 {LABEL}" + book.answer_end)


def test_a_prompt_tells_where_the_subtitle_is():
    text, places = load_prompts().prompt(FULL, ALL, "What  do\nyou\tfeel?", "What do you feel?", TOKENS)
    first, stop = places["SUBTITLE"]
    assert text[first:stop] == "What do you feel?" and "What do you feel?" in text[stop:]
    assert text == prompt(load_prompts(), subtitle="What do you feel?").replace("Why?", "What do you feel?")
    for nothing in ("", " \n", "<FaceHere>"):
        assert load_prompts().prompt(FULL, ALL, nothing, "Why?", TOKENS)[1] == {}


def test_a_prompt_file_without_its_parts_is_refused(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("start: x\n")
    with pytest.raises(ValueError, match=r"prompts\.yaml: expected prompt wording"):
        load_prompts(path)
    path.write_text("start: x\nstreams: {}\nend: x\nquestions:\n  ovlabel:\n    question: What?\n")
    with pytest.raises(ValueError, match=r"prompts\.yaml: questions\.ovlabel: expected question and answer"):
        load_prompts(path)
    path.write_text("start: x\nstreams: {}\nend: x\nquestions: {}\nlayouts: {auonly: {with: x}}\n")
    with pytest.raises(ValueError, match=r"prompts\.yaml: layouts\.auonly: expected a prompt, or two"):
        load_prompts(path)
