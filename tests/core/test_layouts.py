import json
import re

import pytest

from affect.core.layouts import LAYOUTS
from affect.core.schema import PLACEHOLDERS, SPECIAL_TOKENS, Modality


@pytest.fixture
def reference(shared):
    return json.loads((shared / "goldens/prompts/prompts.json").read_text())


def test_every_layout_of_the_reference_is_known_with_its_streams(reference):
    assert len(reference["needed_data"]) == 17
    for name, needed in reference["needed_data"].items():
        layout = LAYOUTS[name]
        # action units, which the reference's prompts never show, are ours
        assert set(layout.needed) - {Modality.AU} == set(needed) - {"multi"}, name
        assert bool(layout.fused) == ("multi" in needed), name


def test_layouts_show_the_reference_s_placeholders_in_its_order(reference):
    for name, template in reference["prompt_template"].items():
        layout = LAYOUTS[name]
        shown = ((Modality.MULTI,) if layout.fused else ()) + layout.branches
        ours = [PLACEHOLDERS[stream] for stream in shown if stream != Modality.AU]
        assert re.findall(r"<\w+Here>", template) == ours, name
        assert layout.subtitle == ("{SUBTITLE}" in template), name


def test_every_layout_of_the_successor_is_known_with_its_streams(shared):
    """Its prompts show action units as text, where ours has tokens or text."""
    for name, prompts in json.loads((shared / "goldens/prompts/nonverbal.json").read_text()).items():
        layout = LAYOUTS[name]
        shown = ((Modality.MULTI,) if layout.fused else ()) + layout.branches
        words = {**PLACEHOLDERS, Modality.AU: "{NONVERBAL}"}
        assert re.findall(r"<\w+Here>|{NONVERBAL}", prompts["with"]) == [words[stream] for stream in shown], name
        assert layout.subtitle == ("{SUBTITLE}" in prompts["with"]), name


def test_special_tokens_keep_the_ids_of_released_checkpoints(shared):
    known = json.loads((shared / "goldens/e2e/meta.json").read_text())["attention_face"]["tokens"]
    added = sorted((index, token) for token, index in known.items() if token.endswith("Here>"))
    assert SPECIAL_TOKENS[: len(added)] == tuple(token for _, token in added)
    assert set(PLACEHOLDERS.values()) <= set(SPECIAL_TOKENS)
