"""Prepared clips to AU sentences and feature arrays, each stream of all clips together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from affect.core.au_json import AuAnalysis, au_json_path, require_sentences
from affect.core.schema import Modality
from extractors.encoders import Encoder
from extractors.media.video import frame_indices
from extractors.run.clip import ClipResult, reason_of
from extractors.run.settings import Settings

ENCODER_BATCH = 16
"""Clips that are described and encoded together."""

Describe = Callable[[Sequence[tuple[AuAnalysis, Sequence[int]]]], list[AuAnalysis]]
"""A maker of AU sentences for some frames (0-based) of each of several clips."""

Encoders = Callable[[Modality], Encoder]
"""Stream -> its encoder."""

_NOTHING = object()
"""Stands for a stream that is not asked for or failed; None is a clip without sound."""


def describe_clips(settings: Settings, describe: Describe, results: Sequence[ClipResult]) -> None:
    """Give sentences to the clips that lack them."""
    clips: list[ClipResult] = []
    items: list[tuple[AuAnalysis, list[int]]] = []
    for result in results:
        analysis = result.analysis
        if "au_text" not in settings.stages or analysis is None or analysis.faceless:
            continue
        if settings.overwrite or not (analysis.summary_description or analysis.fine_grained_descriptions):
            try:
                items.append((analysis, frames_to_describe(analysis, settings.frame_count, settings.sampling)))
                clips.append(result)
            except ValueError as error:
                result.errors["au_text"] = reason_of(error)
    for result, analysis in zip(clips, _all_or_each("au_text", describe, clips, items), strict=True):
        if analysis is not None:
            result.analysis = analysis
            result.made.append("au_text")


def encode_clips(settings: Settings, encoders: Encoders, results: Sequence[ClipResult]) -> None:
    """Make the features that are asked for, and those of sentences that are new."""
    for stream in settings.features:
        found = [(result, _item(settings, encoders, stream, result)) for result in results]
        ready = [(result, item) for result, item in found if item is not _NOTHING]
        if not ready:
            continue
        clips, items = zip(*ready, strict=True)
        for result, array in zip(clips, _all_or_each(stream, encoders(stream), clips, items), strict=True):
            if array is not None:
                result.features[stream] = array


def frames_to_describe(analysis: AuAnalysis, count: int, sampling: str) -> list[int]:
    """Return the frames (0-based) that get a sentence: those that sampling picks of the frames that were measured.

    Raises ValueError when none was.
    """
    numbers = [frame["frame"] for frame in analysis.per_frame_au_descriptions if "frame" in frame]
    if not numbers:
        raise ValueError(
            f"{analysis.source_path or 'AU JSON'}: expected per_frame_au_descriptions to describe, found none; "
            "make the AU JSON anew from an OpenFace table"
        )
    return [numbers[i] - 1 for i in frame_indices(len(numbers), count, sampling, analysis.au_info)]


def _item(settings: Settings, encoders: Encoders, stream: Modality, result: ClipResult) -> Any:
    """Return what the encoder of a stream takes of a clip: of AU the sentences that are asked for or out of date."""
    if stream != Modality.AU:
        return result.items.get(stream, _NOTHING)
    if result.analysis is None or "au_text" in result.errors:
        return _NOTHING
    if Modality.AU not in result.task.streams and "au_text" not in result.made:
        return _NOTHING
    try:
        path = au_json_path(settings.au_root or "", settings.dataset, result.name)
        return encoders(stream).prepare(require_sentences(result.analysis, path))
    except ValueError as error:
        result.errors["au_text"] = reason_of(error)
        return _NOTHING


def _all_or_each(stage: str, make: Callable[[list], list], results: Sequence[ClipResult], items: Sequence) -> list:
    """Return what is made of each item, all at once; when that fails, one by one, with None for those that fail.

    The time it takes is shared out to the clips.
    """
    if not items:
        return []
    start = time.monotonic()
    try:
        made = list(make(list(items)))
    except Exception as error:  # whatever a library raises on one clip, the others go on
        if len(items) > 1:
            return [_all_or_each(stage, make, [result], [item])[0] for result, item in zip(results, items, strict=True)]
        results[0].errors[str(stage)] = reason_of(error)
        made = [None]
    share = (time.monotonic() - start) / len(items)
    clock = "au_text" if stage == "au_text" else "encode"
    for result in results:
        result.seconds[clock] = result.seconds.get(clock, 0.0) + share
    return made
