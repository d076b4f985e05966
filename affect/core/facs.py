"""The facial action units that OpenFace measures: id -> name, muscle, words for sentences.

Names, muscles and regions follow the Facial Action Coding System (Ekman, Friesen & Hager, 2002).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Region(StrEnum):
    """Half of the face that an action unit moves, as FACS divides it."""

    UPPER = "upper face"
    LOWER = "lower face"


@dataclass(frozen=True)
class ActionUnit:
    """One action unit and the words that sentences are made of."""

    id: str
    """As in OpenFace's columns without their ending, e.g. `AU12`."""
    name: str
    """Classic FACS name, as tools print it."""
    muscle: str
    """Muscle that makes the movement, by contracting or (jaw drop, blink) by letting go."""
    region: Region
    part: str
    """What moves, with its article."""
    movement: str
    """How it moves: the participle that follows `part` and an adverb."""


_UP, _LOW = Region.UPPER, Region.LOWER

ACTION_UNITS: dict[str, ActionUnit] = {
    unit.id: unit
    for unit in (
        ActionUnit("AU01", "Inner brow raiser", "Frontalis, pars medialis", _UP, "the inner brows", "raised"),
        ActionUnit("AU02", "Outer brow raiser", "Frontalis, pars lateralis", _UP, "the outer brows", "raised"),
        ActionUnit("AU04", "Brow lowerer", "Corrugator supercilii", _UP, "the brows", "drawn down"),
        ActionUnit("AU05", "Upper lid raiser", "Levator palpebrae superioris", _UP, "the upper lids", "raised"),
        ActionUnit("AU06", "Cheek raiser", "Orbicularis oculi, pars orbitalis", _UP, "the cheeks", "raised"),
        ActionUnit("AU07", "Lid tightener", "Orbicularis oculi, pars palpebralis", _UP, "the lids", "tightened"),
        ActionUnit("AU09", "Nose wrinkler", "Levator labii superioris alaeque nasi", _LOW, "the nose", "wrinkled"),
        ActionUnit("AU10", "Upper lip raiser", "Levator labii superioris", _LOW, "the upper lip", "raised"),
        ActionUnit("AU12", "Lip corner puller", "Zygomaticus major", _LOW, "the lip corners", "pulled up"),
        ActionUnit("AU14", "Dimpler", "Buccinator", _LOW, "the mouth corners", "tucked in"),
        ActionUnit("AU15", "Lip corner depressor", "Depressor anguli oris", _LOW, "the lip corners", "drawn down"),
        ActionUnit("AU17", "Chin raiser", "Mentalis", _LOW, "the chin", "pushed up"),
        ActionUnit("AU20", "Lip stretcher", "Risorius", _LOW, "the lips", "stretched sideways"),
        ActionUnit("AU23", "Lip tightener", "Orbicularis oris", _LOW, "the lips", "tightened"),
        ActionUnit("AU25", "Lips part", "Depressor labii inferioris", _LOW, "the lips", "parted"),
        ActionUnit("AU26", "Jaw drop", "Masseter", _LOW, "the jaw", "dropped"),
        ActionUnit("AU28", "Lip suck", "Orbicularis oris", _LOW, "the lips", "sucked in"),
        ActionUnit("AU45", "Blink", "Orbicularis oculi, pars palpebralis", _UP, "the eyes", "closed"),
    )
}
"""Id -> action unit, in the order of OpenFace's columns."""
INTENSITIES = tuple(f"{unit}_r" for unit in ACTION_UNITS if unit != "AU28")
"""OpenFace's 17 columns of intensities, 0 to 5."""
PRESENCES = tuple(f"{unit}_c" for unit in ACTION_UNITS)
"""OpenFace's 18 columns of presences, 0 or 1."""

_BY_NAME = {unit.name.lower(): unit for unit in ACTION_UNITS.values()}
_DESCRIBED = re.compile(r"\s*([^,()]+?)\s*(?:\(smile\)\s*)?\(intensity:\s*([0-9.]+)\s*\)\s*", re.IGNORECASE)


def action_unit(key: str) -> ActionUnit:
    """Return the action unit of an id or a column name: `AU12`, `AU12_r` and `AU12_c` are the same.

    Raises ValueError for any other key.
    """
    unit = ACTION_UNITS.get(key.removesuffix("_r").removesuffix("_c"))
    if unit is None:
        raise ValueError(
            f"action unit {key!r} is unknown: expected one of {', '.join(ACTION_UNITS)} (with or without '_r'); "
            "correct it where the intensities come from"
        )
    return unit


def au_description(active_aus: Mapping[str, float]) -> str:
    """Return intensities in words and numbers: `Upper lip raiser (intensity: 1.06), ...`, in the order given."""
    return ", ".join(f"{action_unit(key).name} (intensity: {value:.2f})" for key, value in active_aus.items())


def parse_au_description(text: str) -> dict[str, float]:
    """Return `{"AU10_r": 1.06, ...}` of a description such as `au_description` and MER-Factory write.

    `Lip corner puller (smile)` is read as well. Raises ValueError for text in any other form.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        match = _DESCRIBED.fullmatch(part)
        unit = _BY_NAME.get(match[1].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(
                f"{part.strip()!r} is not a described action unit: expected 'Name (intensity: 1.23)' with a FACS name; "
                "correct the description or give the intensities as active_aus"
            )
        found[f"{unit.id}_r"] = float(match[2])
    return found
