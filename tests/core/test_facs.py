"""Action units: names, keys and descriptions in words."""

import json
import re

import pytest

from affect.core.facs import ACTION_UNITS, Region, action_unit, au_description, parse_au_description


def test_every_unit_that_openface_measures_is_known():
    measured = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)
    assert list(ACTION_UNITS) == [f"AU{number:02d}" for number in measured]
    assert all(unit.id == key for key, unit in ACTION_UNITS.items())


def test_halves_of_the_face_are_those_of_facs():
    upper = {unit.id for unit in ACTION_UNITS.values() if unit.region == Region.UPPER}
    assert upper == {"AU01", "AU02", "AU04", "AU05", "AU06", "AU07", "AU45"}


@pytest.mark.parametrize("key", ["AU12", "AU12_r", "AU12_c"])
def test_column_names_and_ids_mean_the_same_unit(key):
    assert action_unit(key).muscle == "Zygomaticus major"


@pytest.mark.parametrize("key", ["AU99", "AU12_x", "au12", "", "12"])
def test_unknown_unit_is_named_in_the_error(key):
    with pytest.raises(ValueError, match=re.escape(repr(key))):
        action_unit(key)


def test_description_is_written_as_merfactory_prints_it_but_without_the_smile():
    text = au_description({"AU10_r": 1.06, "AU12_r": 0.8})
    assert text == "Upper lip raiser (intensity: 1.06), Lip corner puller (intensity: 0.80)"


def test_description_comes_back_as_the_same_intensities():
    intensities = {f"{key}_r": round(0.81 + 0.11 * i, 2) for i, key in enumerate(ACTION_UNITS)}
    assert parse_au_description(au_description(intensities)) == intensities


def test_smile_in_brackets_is_read():
    assert parse_au_description("Lip corner puller (smile) (intensity: 1.14)") == {"AU12_r": 1.14}


def test_empty_description_has_no_units():
    assert parse_au_description("") == {}


@pytest.mark.parametrize("text", ["Neutral expression", "Brow raiser (intensity: 1.00)", "Dimpler", "Dimpler (1.0)"])
def test_text_that_describes_no_unit_is_refused(text):
    with pytest.raises(ValueError, match="expected 'Name"):
        parse_au_description(text)


def test_real_merfactory_descriptions_hold_the_intensities_beside_them(shared):
    read = 0
    for path in sorted((shared / "data/merfactory").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        text = content.get("coarse_descriptions_at_peak", {}).get("visual_expression")
        if text:
            assert parse_au_description(text) == content["overall_peak_frame_info"]["top_aus_intensities"], path.name
            read += 1
    assert read == 4


def test_real_instruction_records_name_the_units_whose_values_they_give(shared):
    lines = (shared / "data/text/au_instruction_val.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        values, described = re.search(r"AU values: (.*)\nAU descriptions: (.*)", json.loads(line)["input"]).groups()
        expected = {f"{key}_r": float(value) for key, value in (pair.split(": ") for pair in values.split(", "))}
        assert parse_au_description(described) == expected
