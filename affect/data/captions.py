"""Action units as words of the prompt: a clip's caption, from a file of captions or the sentences of its AU JSON."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from rich.progress import track

from affect.core.au_json import AuAnalysis, find_au_json, read_au_json, require_sentences, sentences
from affect.core.reading import read_object, reading
from affect.core.schema import Clip
from affect.data.config import ConfigError, DatasetConfig
from affect.data.known_datasets import dataset_name

logger = logging.getLogger(__name__)


def with_captions(dataset: str, clips: Sequence[Clip], config: DatasetConfig) -> list[Clip]:
    """Return clips with their captions: '' for one of which there is nothing to tell, None where nobody looked.

    Raises ConfigError where nothing says where captions are, ValueError where no clip has one.
    """
    if not (source := config.nonverbal_json or config.mer_factory_output):
        raise ConfigError(
            f"data set {dataset}: use_nonverbal_text shows action units as text: expected nonverbal_json, a file of "
            "captions, or mer_factory_output, the root of AU JSON files with sentences, found neither; set one"
        )
    names = [clip.name for clip in clips]
    captions = (
        read_captions(config.nonverbal_json, dataset)
        if config.nonverbal_json
        else _from_au_json(config.mer_factory_output, dataset_name(dataset), names)
    )
    if not any(captions.get(name) for name in names):
        raise ValueError(
            f"{source}: expected captions of the {len(names)} clips of data set {dataset}, found none, e.g. of "
            f"{names[0]!r}; name another nonverbal_json or mer_factory_output, or set use_nonverbal_text to False"
        )
    told = sum(bool(captions.get(name)) for name in names)
    logger.info("data set %s: %d of %d clips have a caption", dataset, told, len(names))
    return [replace(clip, nonverbal=captions.get(clip.name)) for clip in clips]


def read_captions(path: str, dataset: str) -> dict[str, str]:
    """Return clip -> caption of a data set, under any of its names, in a file {data set: {clip: {"caption": text}}}.

    Raises ValueError for a file of another form, or without the data set.
    """
    expected = 'captions, {data set: {clip: {"caption": text}}}'
    with reading(path, expected):
        content = read_object(path, expected)
        found = {dataset_name(name).lower(): clips for name, clips in content.items()}
        if (clips := found.get(dataset_name(dataset).lower())) is None:
            raise ValueError(f"{path}: expected captions of data set {dataset}, found those of {', '.join(content)}")
        captions = {name: entry.get("caption") or "" for name, entry in clips.items()}
        if odd := [name for name, caption in captions.items() if not isinstance(caption, str)]:
            raise ValueError(f"the caption of {odd[0]!r} is no text")
    return captions


def caption_of(analysis: AuAnalysis) -> str:
    """Return the sentences of a clip as one caption, each once."""
    return " ".join(dict.fromkeys(sentences(analysis)))


def _from_au_json(root: str, dataset: str, names: Sequence[str]) -> dict[str, str]:
    """Return clip -> caption of those that have AU JSON with sentences, or without a face."""
    captions, faults = {}, []
    for name in track(names, f"reading captions of {dataset}", disable=len(names) < 1000):
        try:
            analysis = read_au_json(path := find_au_json(root, dataset, name))
            require_sentences(analysis, path)
            captions[name] = caption_of(analysis)
        except FileNotFoundError:
            continue
        except ValueError as error:
            faults.append(str(error))
    if faults:
        logger.warning("%d clips have AU JSON and no caption; the first: %s", len(faults), faults[0])
    return captions
