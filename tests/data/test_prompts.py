import json

import pytest

from affect.data.prompts import PromptBook, load_prompts, shown_streams
from affect.layouts import LAYOUTS
from affect.schema import PLACEHOLDERS, Clip, Modality

FULL = "multiface_audio_face_frame_au_text"
TOKENS = dict.fromkeys(Modality, 2)
ALL = set(LAYOUTS[FULL].needed)


def prompt(book: PromptBook, present=ALL, layout=FULL, subtitle="Hello"):
    return book.prompt(layout, present, subtitle, "Why?", TOKENS)


def test_each_shown_stream_has_as_many_placeholders_as_tokens():
    text = prompt(load_prompts())
    assert all(text.count(placeholder) == 2 for placeholder in PLACEHOLDERS.values())
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
    text = prompt(load_prompts(), present={Modality.AUDIO}, subtitle="<FaceHere> hi {QUESTION}")
    assert PLACEHOLDERS[Modality.FACE] not in text


def test_shown_streams_follow_the_layout():
    assert shown_streams("audioonly", ALL) == (Modality.AUDIO,)
    assert shown_streams(FULL, ALL)[0] == Modality.MULTI


def test_whole_prompts_of_another_wording_are_used(shared, tmp_path):
    golden = json.loads((shared / "goldens/prompts/prompts.json").read_text())
    ours = load_prompts()
    book = PromptBook(ours.start, ours.streams, ours.end, golden["qa"], "###", golden["prompt_template"])
    layout = "multiface_audio_face_text"
    text = book.prompt(layout, ALL, "Hello", "Why?", dict.fromkeys(Modality, 1))
    expected = golden["prompt_template"][layout].replace("{SUBTITLE}", "Hello").replace("{QUESTION}", "Why?")
    assert text == expected


def test_answers_come_from_the_table():
    book = load_prompts()
    clip = Clip("a", "toy", labels=("sad", "tired"), description="Slow, so sad.")
    assert book.answer("description", clip) == "Slow, so sad." + book.answer_end
    assert "sad, tired" in book.answer("ovlabel", clip)
    with pytest.raises(ValueError, match="clip 'b' of toy has no ovlabel"):
        book.answer("ovlabel", Clip("b", "toy"))


def test_a_prompt_file_without_its_parts_is_refused(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("start: x\n")
    with pytest.raises(ValueError, match=r"prompts\.yaml: expected prompt wording"):
        load_prompts(path)
