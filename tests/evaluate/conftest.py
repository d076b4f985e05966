"""The published emotion wheels where they are, and small ones of the same form anywhere."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from affect.evaluate.emotion_wheel import EmotionWheels, read_wheels

BRANCHES = {
    "Happy": {"Joyful": ["Content ", "Excited"]},
    "Sad": {"Lonely": ["Abandoned", None], "Hurt": ["Let down"]},
    "Mad": {"Angry": ["Furious"]},
}
FORMS = {
    "joyful": "joy,joyfully",
    "happy": "happiness,happily",
    "lonely": "loneliness",
    "let down": "",
    "cheerful": "cheerful,cheerfully",
    "angry": "anger,angrily",
    "surprised": "surprise",
}


@pytest.fixture(scope="session")
def wheels(shared) -> EmotionWheels:
    """The published tables."""
    return read_wheels(shared / "goldens" / "emotion_wheel")


@pytest.fixture(scope="session")
def wheel_folder(tmp_path_factory) -> Path:
    """Tables of the published form with a few words; the fifth wheel does not know anger."""
    folder = tmp_path_factory.mktemp("wheels")
    pd.DataFrame({"name": FORMS.keys(), "format": FORMS.values()}).to_csv(folder / "format.csv", index=False)
    words = {"Joyful": "cheerful, glad", "Happy": "Joyful", "lonely": "alone", "let down": "failed", "Angry": "mad"}
    runs = {f"{part}_run{run}": values for run in range(1, 9) for part, values in _columns(words).items()}
    pd.DataFrame(runs).to_excel(folder / "synonym.xlsx", index=False)
    for wheel in range(1, 6):
        branches = {top: below for top, below in BRANCHES.items() if wheel < 5 or top != "Mad"}
        rows = [
            (top if k == j == 0 else None, second if k == 0 else None, third)
            for top, below in branches.items()
            for j, (second, thirds) in enumerate(below.items())
            for k, third in enumerate(thirds)
        ]
        table = pd.DataFrame(rows, columns=["level1", "level2", "level3"])
        table.to_excel(folder / f"wheel{wheel}.xlsx", index=False)
    return folder


def _columns(words: dict[str, str]) -> dict[str, list[str]]:
    return {"word": list(words), "synonym": list(words.values())}


@pytest.fixture(scope="session")
def small_wheels(wheel_folder) -> EmotionWheels:
    """The small tables."""
    return read_wheels(wheel_folder)
