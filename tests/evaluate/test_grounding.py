import json
import math

import pytest

from affect.core.facs import ACTION_UNITS, parse_au_description
from affect.evaluate.grounding import ground, ground_answers, mentions
from extractors.au.templates import describe_frame


def units(text):
    return [sorted(units) for units in mentions(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The brows are slightly drawn down and the lids faintly tightened.", [["AU04"], ["AU07"]]),
        ("Raised brows, lip corner pulling and a jaw drop.", [["AU01", "AU02"], ["AU12"], ["AU26"]]),
        ("inner and outer brow elevation", [["AU01"], ["AU02"]]),
        ("depression of the lip corners, chin raising", [["AU15"], ["AU17"]]),
        ("activity of the zygomaticus major", [["AU12"]]),
        ("He smiles and blinks; AU9 is active.", [["AU12"], ["AU45"], ["AU09"]]),
        ("lip stretching and parting, raised brows and chin lowering", [["AU20"], ["AU25"], ["AU01", "AU02"]]),
        ("ocular closure with lip compression", [["AU45"], ["AU23"]]),
        ("brow lowering, brow lowering", [["AU04"]]),
        ("The brow and ocular regions stay neutral, the person lowers the voice.", []),
        ("He raises a question about his upper lip.", []),
        ("", []),
    ],
)
def test_movements_are_read_whatever_their_wording(text, found):
    assert units(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "no observable lid tightening, lip parting, or jaw dropping",
        "without lip tightening",
        "devoid of brow movement, ocular engagement, or lid tightening",
        "The lips are not parted.",
    ],
)
def test_negated_movements_do_not_count(text):
    assert units(text) == []


def test_a_negation_ends_where_a_new_statement_begins():
    assert units("The face shows no lid tightening but a jaw drop, with lip parting.") == [["AU26"], ["AU25"]]


@pytest.mark.parametrize("unit", list(ACTION_UNITS.values()), ids=list(ACTION_UNITS))
def test_every_unit_is_read_from_its_own_words(unit):
    assert any(unit.id in units for units in mentions(f"{unit.part} are {unit.movement}"))
    assert any(unit.id in units for units in mentions(unit.name))
    assert any(unit.id in units for units in mentions(unit.muscle.partition(",")[0]))


def test_counts_over_all_texts_make_the_shares():
    grounding = ground([("brow lowering and lip parting", {"AU04", "AU07"}), ("nothing", {"AU12"}), ("a smile", None)])
    assert (grounding.precision, grounding.recall) == (1 / 2, 1 / 3)
    assert (grounding.texts, grounding.silent, grounding.faultless, grounding.without_units) == (3, 1, 0, 1)
    assert grounding.unfounded == {"AU25": 1}
    assert math.isnan(ground([]).precision)


def test_templates_never_name_a_unit_that_is_not_there_and_real_descriptions_do(shared):
    lines = (shared / "data/text/au_instruction_val.jsonl").read_text(encoding="utf-8").splitlines()[::8]
    records = [json.loads(line) for line in lines]
    active = [parse_au_description(record["input"].split("AU descriptions:")[1]) for record in records]
    ids = [{key.removesuffix("_r") for key in aus} for aus in active]
    described = ground(zip((record["output"] for record in records), ids, strict=True))
    templates = ground(zip(map(describe_frame, active), ids, strict=True))
    assert templates.precision == 1 and templates.recall > 0.9
    assert 0.8 < described.precision < 0.95 and described.faultless_share < 0.75


def test_weak_units_can_be_left_out_of_what_a_clip_shows():
    answer = {"answer": "The lips are parted.", "streams": ["face"], "missing": [], "action_units": {"AU25": 0.9}}
    assert ground_answers([answer]).precision == 1
    assert ground_answers([answer], at_least=1.0).precision == 0


def test_answers_about_unmeasured_clips_count_for_streams_only():
    answer = {"answer": "The voice is low and the lips part.", "streams": ["face"], "missing": [], "action_units": {}}
    grounding = ground_answers([answer])
    assert grounding.absent_share == 1 and grounding.absent_from == {"voice": 1}
    assert grounding.mentions == 0 and math.isnan(grounding.recall)
