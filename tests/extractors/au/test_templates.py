"""Sentences of action units: wording, length, and how a maker fills an AU JSON."""

import csv
import itertools
import random
import re
from pathlib import Path

import pytest

from affect.core.au_json import AuAnalysis, require_sentences, sentences
from affect.core.conversation import exchange
from affect.core.facs import ACTION_UNITS, Region
from extractors.au.openface import analyse_openface
from extractors.au.templates import (
    GRADES,
    INSTRUCTION,
    MOST_UNITS,
    MOST_UNITS_WITH_MUSCLE,
    REST,
    describe_clips,
    describe_frame,
    frame_input,
    frame_prompt,
    from_templates,
    grade,
)

HALVES = {region: [unit.id for unit in ACTION_UNITS.values() if unit.region == region] for region in Region}


def _clip(*frames: dict[str, float] | None) -> AuAnalysis:
    """An analysis of the active AUs of frames 1, 2, ...; None is a frame without a face."""
    return AuAnalysis(
        source_path="clip.mp4",
        provenance={"tool": "OpenFace"},
        per_frame_au_descriptions=[{"frame": i, "active_aus": aus or {}} for i, aus in enumerate(frames, 1)],
        au_info={
            "total_frames": len(frames),
            "frames_without_face": [[i, i] for i, aus in enumerate(frames, 1) if aus is None],
        },
    )


def _described(analysis: AuAnalysis, indices, *maker) -> AuAnalysis:
    return describe_clips([(analysis, indices)], *maker)[0]


@pytest.fixture(scope="module")
def real_sentences(shared: Path) -> set[str]:
    """Sentences of every frame with a face of every real table."""
    tables = [*(shared / "data/openface").rglob("*.csv"), *(shared / "data/merfactory").glob("*rows*.csv")]
    told = set()
    for table in tables:
        analysis = analyse_openface(table)
        for frame in analysis.per_frame_au_descriptions:
            if analysis.has_face(frame["frame"]):
                told.add(describe_frame(frame["active_aus"]))
    assert len(told) > 400
    return told


@pytest.fixture(scope="module")
def all_words() -> set[str]:
    """Sentences with every action unit at every grade, alone, as the strongest and among all others."""
    told = {REST}
    for unit, level in itertools.product(ACTION_UNITS, range(1, 6)):
        other = {"AU12" if unit == "AU04" else "AU04": 0.9}
        told |= {
            describe_frame(aus) for aus in ({unit: level}, {unit: level} | other, dict.fromkeys(ACTION_UNITS, level))
        }
        told.add(describe_frame(dict.fromkeys(HALVES[ACTION_UNITS[unit].region], level) | {unit: 5}))
    return told


# -- wording ---------------------------------------------------------------------------------------


def test_half_grades_go_up_and_the_scale_has_ends():
    assert [grade(value) for value in (0.2, 1.0, 1.49, 1.5, 2.5, 3.5, 4.5, 5.0, 9.0)] == [0, 0, 0, 1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize(("level", "adverb"), list(enumerate(GRADES, 1)))
def test_every_grade_has_its_own_word(level, adverb):
    assert describe_frame({"AU12_r": level}) == (
        f"A single movement is visible: the lip corners are {adverb} pulled up (zygomaticus major)."
    )


def test_upper_face_comes_before_lower_face_and_strong_before_weak():
    text = describe_frame({"AU25_r": 2.0, "AU12_r": 2.4, "AU04_r": 1.6, "AU07_r": 1.9})
    assert text == (
        "In the upper face, the lids are slightly tightened and the brows slightly drawn down; "
        "in the lower face, the lip corners are slightly pulled up and the lips slightly parted."
    )


def test_movement_in_one_half_is_said_to_be_confined_to_it():
    assert describe_frame({"AU01": 1.0, "AU02": 0.9}) == (
        "Visible movement is confined to the upper face: the inner brows and the outer brows are faintly raised."
    )
    assert describe_frame({"AU10": 3.0, "AU26": 1.0}) == (
        "Visible movement is confined to the lower face: the upper lip is markedly raised "
        "(levator labii superioris) and the jaw faintly dropped."
    )


def test_muscle_is_told_of_a_movement_a_grade_above_the_others_only():
    assert "(corrugator supercilii)" in describe_frame({"AU04": 3.0, "AU12": 1.0})
    assert "(" not in describe_frame({"AU04": 1.4, "AU12": 1.0})
    many = dict.fromkeys(["AU01", "AU07", "AU10", "AU12", "AU25"], 1.0)
    assert len(many) == MOST_UNITS_WITH_MUSCLE
    assert "(zygomaticus major)" in describe_frame(many | {"AU12": 3.0})
    assert "(" not in describe_frame(many | {"AU04": 3.0})


def test_strongest_units_of_each_half_are_told_and_the_rest_left_out():
    text = describe_frame({key: 1 + i / 100 for i, key in enumerate(ACTION_UNITS)})
    assert "the eyes are faintly closed, the lids faintly tightened and the cheeks faintly raised" in text
    assert "the lips faintly tightened" in text and "nose" not in text and "brows" not in text


def test_order_of_the_input_does_not_matter():
    aus = {"AU04": 2.1, "AU12": 1.2, "AU25": 2.7, "AU01": 0.9, "AU17": 1.6}
    assert len({describe_frame(dict(order)) for order in itertools.permutations(aus.items())}) == 1


def test_face_without_active_units_is_said_to_be_at_rest():
    assert describe_frame({}) == REST


def test_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="AU99"):
        describe_frame({"AU99_r": 2.0})


def test_text_is_free_of_the_smile(real_sentences, all_words):
    assert not [text for text in real_sentences | all_words if "smil" in text.lower()]
    assert "smil" not in frame_prompt({"AU12_r": 1.0}).lower()


def _wheel_words(shared: Path) -> set[str]:
    """Every entry of the five emotion wheels, and the other forms that are listed for it."""
    openpyxl = pytest.importorskip("openpyxl")
    folder = shared / "goldens/emotion_wheel"
    words = set()
    for number in range(1, 6):
        for sheet in openpyxl.load_workbook(folder / f"wheel{number}.xlsx"):
            rows = sheet.iter_rows(min_row=2, values_only=True)
            words |= {" ".join(cell.lower().replace("’", "'").split()) for row in rows for cell in row if cell}
    assert {"happy", "tense", "closed off", "don't care", "relaxed"} <= words
    with (folder / "format.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if row["name"].lower() in words:
                words |= {form.strip().lower() for form in row["format"].split(",") if form.strip()}
    return words


def test_no_emotion_word_of_any_wheel_occurs(shared, real_sentences, all_words):
    # listed as forms of "cheeky" and "open", but here they are parts and movements of the face
    words = _wheel_words(shared) - {"cheek", "cheeks", "open", "opened", "opens", "opening", "openly", "openness"}
    assert len(words) > 1000
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(words))) + r")\b")
    assert pattern.search("the man is very let down")
    found = {match[0]: text for text in real_sentences | all_words for match in pattern.finditer(text.lower())}
    assert found == {}


# -- length ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_tokens():
    """Number of tokens that CLIP reads of a text, its two end tokens included."""
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return lambda text: len(tokenizer.encode(text)) + 2


def test_real_sentences_fit_into_clip(clip_tokens, real_sentences):
    assert max(map(clip_tokens, real_sentences)) <= 77


def test_longest_possible_sentence_fits_into_clip(clip_tokens):
    # all told units at the adverb with most tokens, none shared; tokens of the two halves add up
    level = max(range(1, 6), key=lambda level: clip_tokens(GRADES[level - 1]))
    longest = {}
    for region, most in MOST_UNITS.items():
        choices = (
            {key: level - 0.001 * i for i, key in enumerate(c)} for c in itertools.combinations(HALVES[region], most)
        )
        longest |= max(choices, key=lambda aus: clip_tokens(describe_frame(aus)))
    assert 60 < clip_tokens(describe_frame(longest)) <= 77


def test_random_faces_fit_into_clip(clip_tokens):
    draw = random.Random(0)
    for _ in range(1500):
        keys = draw.sample(list(ACTION_UNITS), draw.randint(1, len(ACTION_UNITS)))
        text = describe_frame({key: draw.uniform(0.81, 5) for key in keys})
        assert clip_tokens(text) <= 77, text


# -- filling an analysis ---------------------------------------------------------------------------


def test_prompt_has_the_form_that_users_models_know():
    lines = frame_prompt({"AU04_r": 2.236, "AU12_r": 0.82}).splitlines()
    assert lines[-2:] == [
        "AU values: AU04: 2.24, AU12: 0.82",
        "AU descriptions: Brow lowerer (intensity: 2.24), Lip corner puller (intensity: 0.82)",
    ]
    assert not any("emotion" in line.lower() for line in lines)


def test_prompt_is_the_one_of_real_records_minus_label_and_smile(shared):
    text = (shared / "data/text/au_instruction_val.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert '"input": "Emotion: [' in text
    aus = {"AU04": 2.24, "AU07": 1.87, "AU10": 1.99, "AU12": 0.82, "AU14": 2.93, "AU17": 0.92}
    values = frame_prompt(aus).partition("AU values: ")[2].replace("puller (int", "puller (smile) (int")
    assert values.replace("\n", "\\n") in text


def test_prompt_is_instruction_and_input():
    assert frame_prompt({"AU12_r": 1.0}) == f"{INSTRUCTION}\n{frame_input({'AU12_r': 1.0})}"
    assert frame_input({}).endswith("AU values: none\nAU descriptions: none")


def test_answer_is_the_tail_of_the_exchange():
    ((whole, answer),) = from_templates([{"AU12_r": 2.0}])
    assert whole == exchange(frame_prompt({"AU12_r": 2.0}), answer)
    assert whole.startswith("user\nGenerate") and whole.endswith(f"\nassistant\n{answer}")
    assert exchange("q", "a", "s") == "system\ns\nuser\nq\nassistant\na"


def test_asked_frames_with_a_face_get_sentences_and_the_others_none():
    clip = _clip({"AU04_r": 2.0}, {}, None, {"AU12_r": 1.0})
    told = _described(clip, [3, 2, 1, 1])
    assert told.summary_description == {"2": REST, "4": describe_frame({"AU12_r": 1.0})}
    whole = [frame["fine_grained_description"] for frame in told.per_frame_au_descriptions]
    assert whole[0] == whole[2] == "" and whole[1].endswith(REST) and "AU12: 1.00" in whole[3]
    assert sentences(told) == [REST, describe_frame({"AU12_r": 1.0})]
    assert told.provenance == {"tool": "OpenFace", "sentences": "templates"}


def test_describing_leaves_the_given_analysis_as_it_was():
    clip, same = _clip({"AU04_r": 2.0}), _clip({"AU04_r": 2.0})
    _described(clip, [0])
    assert clip == same


def test_describing_anew_leaves_no_older_sentence():
    first = _described(_clip({"AU04_r": 2.0}, {"AU12_r": 1.0}), [0])
    first.fine_grained_descriptions = {"1": "old"}
    second = _described(first, [1])
    assert list(second.summary_description) == ["2"] and second.fine_grained_descriptions == {}
    assert second.per_frame_au_descriptions[0]["fine_grained_description"] == ""


def test_frame_with_most_movement_stands_in_where_no_asked_frame_has_a_face():
    clip = _clip(None, {"AU04_r": 1.0}, {"AU04_r": 1.0, "AU12_r": 1.0}, {"AU12_r": 1.5}, None)
    assert list(_described(clip, [0, 4]).summary_description) == ["3"]


def test_faceless_clip_is_described_with_no_sentence():
    told = _described(_clip(None, None), [0, 1])
    assert told.summary_description == {} and require_sentences(told, "clip.json") == []


@pytest.mark.parametrize("index", [2, -1])
def test_index_outside_the_clip_is_refused(index):
    with pytest.raises(ValueError, match=rf"clip\.mp4: frame index {index} has no AU description, 2 frames"):
        _described(_clip({}, {}), [0, index])


def test_entries_without_a_number_are_no_frames():
    clip = _clip({"AU04_r": 2.0})
    clip.per_frame_au_descriptions.append({"active_aus": {"AU12_r": 3.0}})
    clip.source_path = ""
    told = _described(clip, [0])
    assert [bool(frame["fine_grained_description"]) for frame in told.per_frame_au_descriptions] == [True, False]
    with pytest.raises(ValueError, match="AU analysis: frame index 1 has no AU description, 1 frames"):
        _described(clip, [1])


def test_other_makers_see_the_faces_only_and_are_named():
    seen = []

    def maker(frames):
        seen.extend(frames)
        return [("whole", f"{len(aus)} units") for aus in frames]

    told = _described(_clip({"AU04_r": 2.0}, None, {}), [0, 1, 2], maker, "a test")
    assert seen == [{"AU04_r": 2.0}, {}]
    assert told.summary_description == {"1": "1 units", "3": "0 units"} and told.provenance["sentences"] == "a test"


def test_empty_answer_of_a_maker_is_refused():
    with pytest.raises(ValueError, match=r"clip\.mp4: a test gave an empty sentence for frame 2"):
        _described(_clip({}, {}), [0, 1], lambda frames: [("w", "a"), ("w", " ")], "a test")


def test_clips_get_what_each_would_get_alone_from_one_call_of_the_maker():
    clips = [
        (_clip({"AU04_r": 2.0}, {"AU12_r": 1.0}), [0, 1]),
        (_clip(None, None), [0, 1]),
        (_clip(None, {"AU01_r": 3.0}, {}), [0]),
        (_clip({}, {"AU25_r": 1.5}), [1, 0]),
    ]
    calls = []

    def maker(frames):
        calls.append(len(frames))
        return from_templates(frames)

    assert describe_clips(clips, maker) == [_described(*clip) for clip in clips]
    assert calls == [5]


def test_maker_is_not_called_for_nothing():
    def maker(frames):
        raise AssertionError(frames)

    assert describe_clips([], maker) == []
    assert describe_clips([(_clip(None), [0])], maker)[0].summary_description == {}


def test_clip_that_fails_is_named_among_others():
    good, bad = _clip({"AU04_r": 2.0}), _clip({"AU04_r": 2.0}, {})
    bad.source_path = "bad.mp4"
    with pytest.raises(ValueError, match=r"^bad\.mp4: a test gave an empty sentence for frame 2"):
        describe_clips(
            [(good, [0]), (bad, [0, 1])], lambda frames: [("w", "a" if aus else "") for aus in frames], "a test"
        )
    called = []
    with pytest.raises(ValueError, match=r"^bad\.mp4: frame index 7 has no AU description"):
        describe_clips([(good, [0]), (bad, [7])], called.append)
    assert not called  # before anything costly


def test_maker_that_loses_a_frame_is_refused():
    with pytest.raises(ValueError, match="a test gave 1 sentences for 2 frames"):
        describe_clips([(_clip({}, {}), [0, 1])], lambda frames: from_templates(frames)[:1], "a test")


def test_units_are_read_from_the_description_of_files_that_give_no_numbers():
    clip = AuAnalysis(
        per_frame_au_descriptions=[{"frame": 1, "au_description": "Lip corner puller (smile) (intensity: 1.14)"}]
    )
    assert _described(clip, [0]).summary_description == {"1": describe_frame({"AU12_r": 1.14})}


def test_real_clip_in_which_the_face_appears_is_told_from_there_on(shared):
    analysis = analyse_openface(shared / "data/openface/featureextraction/pyfeat_noface_face.csv")
    indices = list(range(0, 169, 21))
    told = _described(analysis, indices)
    assert [int(key) for key in told.summary_description] == [i + 1 for i in indices if analysis.has_face(i + 1)]
    assert 0 < len(told.summary_description) < len(indices)
