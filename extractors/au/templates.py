"""Sentences about muscle movement: a template maker, and how any maker fills an AU JSON.

Grades are those of FACS (Ekman, Friesen & Hager, 2002), A trace to E maximum, on OpenFace's scale, where
1 is A and 5 is E (the coding of DISFA, Mavadati et al., 2013). Sentences name no emotion: what a movement
means is for the model that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from affect.core.au_json import AuAnalysis, FrameAus
from affect.core.conversation import exchange
from affect.core.facs import ActionUnit, Region, action_unit, au_description, parse_au_description

ActiveAus = Mapping[str, float]
"""`AU10_r` -> intensity 0..5 of one frame."""

Maker = Callable[[list[ActiveAus]], list[tuple[str, str]]]
"""Turns the active AUs of N frames into N pairs (whole exchange, answer alone)."""

Clips = Sequence[tuple[AuAnalysis, Sequence[int]]]
"""Analyses, each with the indices (0-based) of the frames to describe."""

INSTRUCTION = "Generate a detailed facial expression description based on the given information."
"""First line of the user turn; in instruction data it has a field of its own."""

GRADES = ("faintly", "slightly", "markedly", "extremely", "maximally")
"""Adverbs for FACS A (trace), B (slight), C (marked), D (extreme), E (maximum)."""

MOST_UNITS = {Region.UPPER: 3, Region.LOWER: 4}
"""Strongest action units told of each half of the face: more would not fit CLIP's 77 tokens."""

MOST_UNITS_WITH_MUSCLE = 5
"""Action units told of the whole face when one of them is told with its muscle, for the same reason."""

REST = "The face is at rest, without any clearly visible muscle contraction."
"""Sentence of a frame that has a face but no active AU."""


def frame_prompt(active_aus: ActiveAus) -> str:
    """Return the user turn about one frame, in the form that users' description models were tuned with."""
    return f"{INSTRUCTION}\n{frame_input(active_aus)}"


def frame_input(active_aus: ActiveAus) -> str:
    """Return what follows `INSTRUCTION` in the user turn about one frame."""
    values = ", ".join(f"{action_unit(key).id}: {value:.2f}" for key, value in active_aus.items())
    return (
        "Prompt: Given the AU intensity values and their semantic descriptions, "
        "provide a detailed and natural facial expression description:\n"
        f"AU values: {values or 'none'}\nAU descriptions: {au_description(active_aus) or 'none'}"
    )


def grade(intensity: float) -> int:
    """Return the FACS grade of an intensity (0..5) as an index into `GRADES`; halves go up."""
    return min(max(int(intensity + 0.5), 1), 5) - 1


def describe_frame(active_aus: ActiveAus) -> str:
    """Return one sentence about the active AUs of a frame: upper face, then lower face, strongest first.

    The form follows from the content, so the same face always gets the same words: one movement alone, one
    half of the face, or both; a movement that is a whole grade above the others is told with its muscle
    if there are few (`MOST_UNITS_WITH_MUSCLE`). Of each half at most `MOST_UNITS` are told.
    Raises ValueError for an unknown AU.
    """
    units = [(action_unit(key), intensity) for key, intensity in active_aus.items()]
    units.sort(key=lambda pair: -pair[1])
    if not units:
        return REST
    halves = {
        region: [pair for pair in units if pair[0].region == region][:most] for region, most in MOST_UNITS.items()
    }
    halves = {region: pairs for region, pairs in halves.items() if pairs}
    few = sum(map(len, halves.values())) <= MOST_UNITS_WITH_MUSCLE
    alone = len(units) == 1
    strongest = units[0][0] if alone or (few and grade(units[0][1]) > grade(units[1][1])) else None
    if alone:
        return f"A single movement is visible: {_clauses(units, strongest)}."
    if len(halves) == 1:
        ((region, pairs),) = halves.items()
        return f"Visible movement is confined to the {region}: {_clauses(pairs, strongest)}."
    told = "; ".join(f"in the {region}, {_clauses(pairs, strongest)}" for region, pairs in halves.items())
    return f"{told[0].upper()}{told[1:]}."


def _clauses(pairs: Sequence[tuple[ActionUnit, float]], strongest: ActionUnit | None) -> str:
    """Return `the brows are slightly drawn down (corrugator supercilii) and the lids faintly tightened`."""
    clauses = []
    for (how, movement), group in groupby(pairs, key=lambda pair: (GRADES[grade(pair[1])], pair[0].movement)):
        units = [unit for unit, _ in group]
        subject = _listed([unit.part for unit in units])
        verb = ("are " if len(units) > 1 or subject.endswith("s") else "is ") if not clauses else ""
        muscle = f" ({units[0].muscle.partition(',')[0].lower()})" if units[0] is strongest else ""
        clauses.append(f"{subject} {verb}{how} {movement}{muscle}")
    return _listed(clauses)


def _listed(items: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def from_templates(frames: list[ActiveAus]) -> list[tuple[str, str]]:
    """Return (whole exchange, answer alone) of each frame's active AUs: the maker that needs no weights."""
    answers = [describe_frame(active) for active in frames]
    return [(exchange(frame_prompt(active), answer), answer) for active, answer in zip(frames, answers, strict=True)]


def describe_clips(clips: Clips, maker: Maker = from_templates, made_by: str = "templates") -> list[AuAnalysis]:
    """Return the analyses with sentences for the asked frames that have a face; the maker is called once for all.

    Where none of a clip's has one but another frame does, the frame with the most movement stands in, so that
    only a faceless clip goes without a sentence. Older sentences are replaced. `made_by` names the maker in
    the provenance. Raises ValueError, naming the clip, for an index outside it or an empty answer.
    """
    chosen = [_frames_to_describe(analysis, frame_indices) for analysis, frame_indices in clips]
    frames = [active for clip in chosen for active in clip.values()]
    made = maker(frames) if frames else []
    if len(made) != len(frames):
        raise ValueError(f"{made_by} gave {len(made)} sentences for {len(frames)} frames; use another maker")
    following = iter(made)
    return [
        _with_sentences(analysis, dict(zip(clip, following, strict=False)), made_by)
        for (analysis, _), clip in zip(clips, chosen, strict=True)
    ]


def _frames_to_describe(analysis: AuAnalysis, frame_indices: Sequence[int]) -> dict[int, ActiveAus]:
    """Return frame number (1-based) -> active AUs of the frames that get a sentence."""
    frames = {frame["frame"]: frame for frame in analysis.per_frame_au_descriptions if "frame" in frame}
    wanted = sorted({index + 1 for index in frame_indices})
    if outside := [number for number in wanted if number not in frames]:
        raise ValueError(
            f"{_name(analysis)}: frame index {outside[0] - 1} has no AU description, "
            f"{len(frames)} frames have one; sample the frames of this clip"
        )
    numbers = [number for number in wanted if analysis.has_face(number)]
    if not numbers:
        faces = [number for number in frames if analysis.has_face(number)]
        numbers = sorted(faces, key=lambda number: -sum(active_aus(frames[number]).values()))[:1]
    return {number: active_aus(frames[number]) for number in numbers}


def _with_sentences(analysis: AuAnalysis, made: dict[int, tuple[str, str]], made_by: str) -> AuAnalysis:
    """Return the analysis with what was made of each frame (1-based) in place of older sentences."""
    if empty := [number for number, (_, answer) in made.items() if not answer.strip()]:
        raise ValueError(
            f"{_name(analysis)}: {made_by} gave an empty sentence for frame {empty[0]}; "
            "use another model or the templates"
        )
    return replace(
        analysis,
        provenance={**analysis.provenance, "sentences": made_by},
        per_frame_au_descriptions=[
            {**frame, "fine_grained_description": made.get(frame.get("frame", 0), ("", ""))[0]}
            for frame in analysis.per_frame_au_descriptions
        ],
        fine_grained_descriptions={},
        summary_description={str(number): answer for number, (_, answer) in made.items()},
    )


def _name(analysis: AuAnalysis) -> str:
    return analysis.source_path or "AU analysis"


def active_aus(frame: FrameAus) -> dict[str, float]:
    """Return the active AUs of a frame, read from its description where the numbers are not given apart."""
    return frame.get("active_aus") or parse_au_description(frame.get("au_description", ""))
