"""Words for what moves in a face: parts, movements, muscles, and which action units they make together."""

from __future__ import annotations

import re

from affect.core.facs import ACTION_UNITS

Units = frozenset[str]

_PARTS: dict[str, str] = {
    "inner brow": r"inner(?=(?: and|,| or) outer (?:eye)?brows?)|(?:inner|medial)[ -](?:eye)?brows?",
    "outer brow": r"(?:outer|lateral)[ -](?:eye)?brows?",
    "brow": r"(?:eye)?brows?|forehead",
    "upper lid": r"upper (?:eye)?-?lids?",
    "lid": r"(?:lower )?(?:eye)?-?lids?",
    "eye": r"eyes?|ocular",
    "cheek": r"cheeks?",
    "nose": r"nose|nasal(?: bridge| root)?",
    "upper lip": r"upper[ -]lips?",
    "lip corner": r"(?:lip|mouth|oral)[ -]corners?|corners? of (?:the|his|her|their) (?:mouth|lips)",
    "chin": r"chin",
    "lip": r"(?:lower )?lips?",
    "mouth": r"mouth|oral (?:aperture|cavity)",
    "jaw": r"(?:lower )?jaw|mandib(?:le|ular)",
}
_MOVES: dict[str, str] = {
    "down": r"lower(?:s|ed|er|ing)|(?:drawn|draws?|drawing|pulled|pulling|turn(?:s|ed)?|go(?:es)?) (?:down(?:wards?)?|"
    r"together)|depress(?:ed|ion|or|ing)|furrow(?:s|ed|ing)?|knit(?:ted)?|sink(?:s|ing)?",
    "up": r"rais(?:e|es|ed|er|ing)|elevat(?:es?|ed|ion|ing|or)|lift(?:s|ed|ing)?|push(?:es|ed|ing)? up|go(?:es)? up",
    "pull": r"pull(?:s|ed|er|ing)?(?: (?:up|back|upwards?))?|upturn(?:ed)?|turn(?:s|ed)? up",
    "tight": r"tight(?:en|ens|ened|ening|ener|ness)?|tens(?:e|ed|ing)|press(?:ed|ing)|compress(?:es|ed|ion|ing)?|"
    r"narrow(?:s|ed|ing)?",
    "wide": r"widen(?:s|ed|ing)?|wide(?: open)?",
    "wrinkle": r"wrinkl(?:e|es|ed|er|ing)",
    "stretch": r"stretch(?:es|ed|er|ing)?",
    "part": r"part(?:s|ed|ing)?|separat(?:e|es|ed|ion|ing)|open(?:s|ed|ing)?|apart",
    "drop": r"drop(?:s|ped|ping)?|falls? open",
    "suck": r"suck(?:s|ed|ing)?",
    "close": r"clos(?:e|es|ed|ing|ure)|shut",
    "tuck": r"tucked in",
    "retract": r"retract(?:s|ed|ing|ion)?",
}
_MOVED_BY_NAME: dict[str, dict[str, str]] = {
    "inner brow": {"up": "AU01", "down": "AU04"},
    "outer brow": {"up": "AU02", "down": "AU04"},
    "brow": {"up": "AU01 AU02", "down": "AU04", "pull": "AU04", "wrinkle": "AU01 AU02 AU04"},
    "upper lid": {"up": "AU05", "wide": "AU05", "tight": "AU07"},
    "lid": {"up": "AU05", "wide": "AU05", "tight": "AU07", "close": "AU07 AU45", "drop": "AU07 AU45"},
    "eye": {"wide": "AU05", "tight": "AU07", "close": "AU45"},
    "cheek": {"up": "AU06"},
    "nose": {"wrinkle": "AU09"},
    "upper lip": {"up": "AU10"},
    "lip corner": {
        "up": "AU12",
        "pull": "AU12",
        "down": "AU15",
        "tuck": "AU14",
        "tight": "AU14",
        "retract": "AU12 AU14 AU20",
    },
    "chin": {"up": "AU17", "wrinkle": "AU17"},
    "lip": {"up": "AU10", "stretch": "AU20", "tight": "AU23", "part": "AU25", "suck": "AU28"},
    "mouth": {"part": "AU25 AU26", "drop": "AU26", "wide": "AU12 AU20 AU25 AU26", "stretch": "AU20"},
    "jaw": {"drop": "AU26", "down": "AU26", "part": "AU26"},
}
_BY_THEMSELVES: dict[str, str] = {
    r"dimpl(?:e|es|ed|er|ing)": "AU14",
    r"blink(?:s|ed|ing)?": "AU45",
    r"smil(?:e|es|ed|ing)": "AU12",
    r"frown(?:s|ed|ing)?": "AU04 AU15",
    r"squint(?:s|ed|ing)?": "AU07",
}
"""Movements that need no part beside them."""


def _muscles() -> dict[str, str]:
    """Return pattern -> units that a muscle moves, the longest names first; parts of a muscle are not told apart."""
    units: dict[str, set[str]] = {}
    for unit in ACTION_UNITS.values():
        units.setdefault(unit.muscle.partition(",")[0].lower(), set()).add(unit.id)
    units["orbicularis oris"].add("AU25")  # the ring muscle of the lips parts them by letting go
    shortened = {name.replace(" major", "(?: major)?"): " ".join(found) for name, found in units.items()}
    return dict(sorted(shortened.items(), key=lambda item: -len(item[0])))


_ALONE = {**_muscles(), **_BY_THEMSELVES}

ALONE: dict[str, Units] = {str(i): frozenset(units.split()) for i, units in enumerate(_ALONE.values())}
"""Number of a muscle or movement in `WORDS` -> action units."""

_NUMBER = {name: str(i) for names in (_PARTS, _MOVES) for i, name in enumerate(names)}
MOVED: dict[tuple[str, str], Units] = {
    (_NUMBER[part], _NUMBER[move]): frozenset(units.split())
    for part, moves in _MOVED_BY_NAME.items()
    for move, units in moves.items()
}
"""Numbers of a part and a movement in `WORDS` -> action units."""

WORDS = re.compile(
    r"\b(?:"
    + "|".join(
        f"(?P<{what}_{i}>{pattern})"
        for what, patterns in (("alone", _ALONE), ("part", _PARTS.values()), ("move", _MOVES.values()))
        for i, pattern in enumerate(patterns)
    )
    + r"|(?P<code>au ?\d\d?))\b",
    re.IGNORECASE,
)
"""Every word for a part, a movement, a muscle or a unit; its group says which: `part_3`."""

BETWEEN_PARTS = re.compile(r"(?:[\s,]|\b(?:and|or|the|both|his|her|their|as well as)\b)*", re.IGNORECASE)
"""What may stand between parts that share a movement."""

BEFORE_MOVE = re.compile(
    r"(?:[\s-]|\b(?:is|are|was|were|being|be|been|has|have|muscles?|region|area|corners?|movement|more|very|also|"
    r"slight|subtle|further|stay|stays|remain|remains|\w+ly)\b)*(?:\([^)]*\)\s*)?",
    re.IGNORECASE,
)
"""What may stand between a part and a movement after it."""

BEFORE_PART = re.compile(r"(?:\s|\b(?:of|in|at|the|both|his|her|their|up|down)\b)*", re.IGNORECASE)
"""What may stand between a movement and a part after it."""

_NEW_STATEMENT = (
    "but while with is are was were though yet which that as accompanied alongside along indicating suggesting "
    "reflecting showing highlighting maintaining illustrating demonstrating resulting emphasizing creating contributing"
)
ABSENT = re.compile(
    r"\b(?:no|without|absent|absence of|lack of|lacking|devoid of|cessation of)\b"
    rf"(?:[\s,]+(?!(?:{_NEW_STATEMENT.replace(' ', '|')})\b)[\w-]+){{0,12}}[\s,]*$",
    re.IGNORECASE,
)
"""Words before a mention that say that it, or the list it is in, is not there."""

AND_MOVE = re.compile(r"(?:[\s,]|\b(?:and|or|\w+ly)\b)*", re.IGNORECASE)
"""What may stand between movements of the same part."""
