"""Clips with their features, asked a question: what the model trains on and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from rich.progress import track

from affect.core.cues import leave_out_absent, shown_together
from affect.core.layouts import LAYOUTS
from affect.core.schema import Clip, Modality, Sample
from affect.data.captions import with_captions
from affect.data.config import Config, DatasetConfig, ModelConfig
from affect.data.known_datasets import NO_CHOICES, Choices, choices, dataset_name
from affect.data.manifest import read_manifest
from affect.data.prompts import NEEDS, PromptBook
from affect.data.sampling import Draw, coin
from affect.features.store import MAKE_WITH, FeatureError, FeatureSpec, FeatureStore, extract_command

if TYPE_CHECKING:
    from affect.data.collate import Collator


HYBRID = ("description", "ovlabel")
"""Question kinds that label_type hybird draws from."""


def asked_kinds(label_type: str) -> tuple[str, ...]:
    """Return the question kinds that a data set's label_type draws from, each as often as the others."""
    return HYBRID if label_type == "hybird" else (label_type,)


def query_tokens(model: ModelConfig) -> dict[Modality, int]:
    """Return how many fused tokens the model makes for each stream."""
    video = model.num_video_query_token
    return {
        Modality.MULTI: model.num_multi_query_token,
        Modality.AUDIO: model.num_audio_query_token,
        Modality.FACE: video,
        Modality.FRAME: video,
        Modality.AU: model.num_au_query_token,
        Modality.IMAGE: model.num_image_query_token,
    }


class Features(Protocol):
    """Where the features of a data set's clips come from: a `FeatureStore`, or encoders at work."""

    root: Path

    def read(self, spec: FeatureSpec, name: str) -> np.ndarray:
        """Return the features of one clip as float32 [T, D] (raises FeatureError)."""

    def missing(self, spec: FeatureSpec, names: Iterable[str]) -> list[str]:
        """Return the clips whose features cannot be read."""


@dataclass
class ClipDataset:
    """The clips of one data set and split, and where their features are."""

    name: str
    clips: Sequence[Clip]
    config: DatasetConfig
    store: Features
    specs: dict[Modality, FeatureSpec]
    """Streams that the layout needs -> which features to read."""
    choices: Choices = NO_CHOICES
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Field that no clip has (labels, description, valence) -> where it was looked for."""

    def __len__(self) -> int:
        return len(self.clips)

    def features(self, index: int) -> dict[Modality, np.ndarray]:
        """Return stream -> [T, D] of one clip (raises FeatureError for a missing or mismatching array)."""
        return {stream: self.store.read(spec, self.clips[index].name) for stream, spec in self.specs.items()}

    def ahead(self) -> AbstractContextManager[None]:
        """Let encoders, where they are at work, prepare the clips before they are asked for in order."""
        ahead = getattr(self.store, "ahead", None)
        return ahead([clip.name for clip in self.clips]) if ahead else nullcontext()

    def check(self) -> None:
        """Raise FeatureError naming the first missing array of each stream, how many more there are, and what to do."""
        faults, to_make = [], []
        for spec in self.specs.values():
            missing = self.store.missing(spec, [clip.name for clip in self.clips])
            others = f"; {len(missing) - 1} more clips have none" if len(missing) > 1 else ""
            for fault in [fault for name in missing[:1] for fault in self._faults(name, [spec])]:
                what, command, _ = fault.partition(MAKE_WITH)  # which is one for all streams
                faults.append(f"{what}{others}")
                to_make += [spec] if command else []
        if faults:
            advice = MAKE_WITH + extract_command(self.name, self.store.root.parent, to_make) if to_make else ""
            raise FeatureError(f"data set {self.name}: " + "\n".join(faults) + advice)

    def check_arrays(self) -> None:
        """Read every array once; raise FeatureError with the first faults and how many there are."""
        clips = track(self.clips, f"checking {self.name}", disable=len(self) < 1000)
        if faults := dict.fromkeys(fault for clip in clips for fault in self._faults(clip.name, self.specs.values())):
            raise FeatureError(f"data set {self.name}: {_first_of(list(faults))}")

    def _faults(self, name: str, specs: Iterable[FeatureSpec]) -> Iterator[str]:
        """Yield what is wrong with the arrays of a clip."""
        for spec in specs:
            try:
                self.store.read(spec, name)
            except FeatureError as error:
                yield str(error)


def open_dataset(
    name: str, config: DatasetConfig, model: ModelConfig, split: str, store: Features | None = None
) -> ClipDataset:
    """Return one data set's split; its features, unseen so far, come from `store` where one is given.

    Raises ValueError for a bad table or split.
    """
    manifest = read_manifest(name, config, split)
    return ClipDataset(
        name=dataset_name(name),
        clips=with_captions(name, manifest.clips, config) if config.captioned else manifest.clips,
        config=config,
        store=FeatureStore(Path(config.preextracted_root), dataset_name(name)) if store is None else store,
        specs={stream: config.spec(stream, model.feature_dim(stream)) for stream in config.layout.needed},
        choices=choices(name, config),
        lacking=manifest.lacking,
    )


def open_datasets(config: Config, split: str, stores: Mapping[str, Features] | None = None) -> list[ClipDataset]:
    """Return every data set of a configuration, its features checked to be there.

    stores: data set -> where its features come from, for those that are not read from their feature store. Raises
    ValueError when there are no data sets, FeatureError for missing features.
    """
    if not config.datasets:
        raise ValueError("section datasets: expected at least one data set, found none")
    stores = stores or {}
    datasets = [
        open_dataset(name, section, config.model, split, stores.get(name)) for name, section in config.datasets.items()
    ]
    for dataset in datasets:
        dataset.check()
    return datasets


@dataclass
class TrainingSamples:
    """Samples of several data sets, indexed by draws; what is random in one depends on seed, cycle and index only."""

    datasets: Sequence[ClipDataset]
    prompts: PromptBook
    tokens: dict[Modality, int]
    seed: int

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def check_answers(self) -> None:
        """Raise ValueError naming what training would ask for and a data set or a clip does not have.

        That is a column, candidate labels or a range of values of a data set, or else the first clips without a
        label or with one that cannot be chosen, and their number.
        """
        for dataset in self.datasets:
            for kind in asked_kinds(dataset.config.label_type):
                if fault := dataset.lacking.get(NEEDS[kind]):
                    raise ValueError(f"data set {dataset.name}: {kind} needs the clips' {NEEDS[kind]}; {fault}")
                try:
                    self.prompts.question(kind, dataset.choices)
                except ValueError as error:
                    raise ValueError(f"data set {dataset.name}: {error}") from None
        faults = [fault for dataset in self.datasets for fault in _answer_faults(dataset, self.prompts)]
        if faults:
            raise ValueError(_first_of(faults))

    def check_prompts(self, collator: Collator) -> None:
        """Raise ValueError when even a prompt without subtitle is longer than the model's longest."""
        for dataset in self.datasets:
            for kind in asked_kinds(dataset.config.label_type):
                check_prompt(dataset, self.prompts, kind, self.tokens, collator)

    def __getitem__(self, draw: Draw) -> Sample:
        rng = np.random.default_rng((self.seed, draw.cycle, draw.index))
        dataset, index = self._locate(draw.index)
        clip = dataset.clips[index]
        told = {Modality.AU: clip.nonverbal} if clip.nonverbal else {}  # words are dropped as features are
        features = _drop_streams({**dataset.features(index), **told}, dataset.config.modality_dropout, rng)
        clip = replace(clip, nonverbal=features.pop(Modality.AU)) if told else clip
        kinds = asked_kinds(dataset.config.label_type)
        # by a coin of its own, so that the lengths of a cycle's texts are known without reading features
        kind = kinds[int(coin(self.seed, draw.cycle, draw.index) * len(kinds))]
        layout = dataset.config.face_or_frame
        answer = self.prompts.answer(kind, _as_shown(clip, features, layout))
        return make_sample(clip, features, layout, self.prompts, kind, self.tokens, answer, dataset.choices)

    def _locate(self, index: int) -> tuple[ClipDataset, int]:
        for dataset in self.datasets:
            if index < len(dataset):
                return dataset, index
            index -= len(dataset)
        raise IndexError(index)


def _as_shown(clip: Clip, features: Mapping[Modality, np.ndarray], layout: str) -> Clip:
    """Return a clip whose description speaks of what the sample shows and of nothing else."""
    shown = present_streams(clip, features)
    return replace(clip, description=leave_out_absent(clip.description, shown, LAYOUTS[layout].missing(shown)))


def present_streams(clip: Clip, features: Mapping[Modality, np.ndarray]) -> list[Modality]:
    """Return the streams that a clip has: those with rows, and action units where words tell them."""
    told = [Modality.AU] if clip.nonverbal else []
    return [stream for stream, array in features.items() if len(array)] + told


def make_sample(
    clip: Clip,
    features: dict[Modality, np.ndarray],
    layout: str,
    prompts: PromptBook,
    kind: str,
    tokens: dict[Modality, int],
    answer: str = "",
    choices: Choices = NO_CHOICES,
) -> Sample:
    """Return a clip with its prompt for one question kind; streams of zero rows are not shown."""
    question, caption = prompts.question(kind, choices), clip.nonverbal or ""
    present = [stream for stream, array in features.items() if len(array)]
    prompt, places = prompts.prompt(layout, present, clip.subtitle, question, tokens, caption)
    spoken, told = (places.get(key, (0, 0)) for key in ("SUBTITLE", "NONVERBAL"))
    return Sample(clip, features, prompt, answer, spoken, told)


def check_prompt(
    dataset: ClipDataset, prompts: PromptBook, kind: str, tokens: dict[Modality, int], collator: Collator
) -> None:
    """Raise ValueError when a prompt with every stream is longer than the model's longest, however short its subtitle.

    Cut to nothing, a subtitle still has the sentence around it, as a caption has, hence a letter where any clip has
    words.
    """
    spoken = "a" if any(clip.subtitle.strip() for clip in dataset.clips) else ""
    told = "a" if any(clip.nonverbal for clip in dataset.clips) else ""
    clip = replace(dataset.clips[0], subtitle=spoken, nonverbal=told)
    everything = {stream: np.ones((1, spec.dim), np.float32) for stream, spec in dataset.specs.items()}
    layout = dataset.config.face_or_frame
    collator.prompt_ids(make_sample(clip, everything, layout, prompts, kind, tokens, choices=dataset.choices))


def _answer_faults(dataset: ClipDataset, prompts: PromptBook) -> Iterator[str]:
    """Yield a sentence for each clip whose label cannot be the answer to what its data set asks."""
    labels, valences = dataset.choices.labels, dataset.choices.valence_range
    kinds = asked_kinds(dataset.config.label_type)
    for clip in dataset.clips:
        for kind in kinds:
            try:
                prompts.answer(kind, clip)
            except ValueError as error:
                yield str(error)
                continue
            what = f"clip {clip.name!r} of {dataset.name} has the"
            if kind == "onehot_w_candidates" and clip.labels[0] not in labels:
                yield f"{what} label {clip.labels[0]!r}: expected one of {', '.join(labels)}"
            if kind == "valence" and not valences[0] <= clip.valence <= valences[1]:
                yield f"{what} valence {clip.valence}: expected {valences[0]} to {valences[1]}"


def _first_of(faults: list[str]) -> str:
    """Return the first few of many sentences, and how many more there are."""
    return "\n".join([*faults[:5], *([f"… and {len(faults) - 5} more"] if len(faults) > 5 else [])])


def _drop_streams(
    features: dict[Modality, np.ndarray], chance: float, rng: np.random.Generator
) -> dict[Modality, np.ndarray]:
    """Empty each stream with `chance`, but never the last one that is there.

    One time in three those go with it that show the same: else a face is hardly ever out of sight, for pictures and
    action units both show it, and a model that never had to do without cannot.
    """
    present = [stream for stream, array in features.items() if len(array)]
    first = [stream for stream in present if rng.random() < chance]
    gone = {*first}.union(*(shown_together(stream) for stream in first if 3 * rng.random() < 1))
    dropped = [stream for stream in present if stream in gone]
    if present and len(dropped) == len(present):
        dropped.remove(dropped[int(rng.integers(len(dropped)))])
    return {stream: array[:0] if stream in dropped else array for stream, array in features.items()}
