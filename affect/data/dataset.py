"""Clips with their features, asked a question: what the model trains on and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from affect.config import Config, DatasetConfig, ModelConfig
from affect.data.manifest import read_clips
from affect.data.prompts import PromptBook
from affect.data.sampling import Draw
from affect.layouts import LAYOUTS
from affect.schema import Clip, Modality, Sample
from affect.store import EXTRACT_COMMAND, FeatureError, FeatureSpec, FeatureStore

HYBRID = ("description", "ovlabel")
"""Question kinds that label_type hybird draws from."""


def query_tokens(model: ModelConfig) -> dict[Modality, int]:
    """Return how many fused tokens the model makes for each stream."""
    video = model.num_video_query_token
    return {
        Modality.MULTI: model.num_multi_query_token,
        Modality.AUDIO: model.num_audio_query_token,
        Modality.FACE: video,
        Modality.FRAME: video,
        Modality.AU: model.num_au_query_token,
    }


@dataclass
class ClipDataset:
    """The clips of one data set and split, and where their features are."""

    name: str
    clips: Sequence[Clip]
    config: DatasetConfig
    store: FeatureStore
    specs: dict[Modality, FeatureSpec]
    """Streams that the layout needs -> which features to read."""

    def __len__(self) -> int:
        return len(self.clips)

    def features(self, index: int) -> dict[Modality, np.ndarray]:
        """Return stream -> [T, D] of one clip (raises FeatureError for a missing or mismatching array)."""
        return {stream: self.store.read(spec, self.clips[index].name) for stream, spec in self.specs.items()}

    def check(self) -> None:
        """Raise FeatureError naming the first missing array of each stream, and how many more there are."""
        faults = []
        for stream, spec in self.specs.items():
            missing = self.store.missing(spec, [clip.name for clip in self.clips])
            if missing:
                command = EXTRACT_COMMAND.format(dataset=self.name, modality=stream, root=self.store.root.parent)
                more = f" and of {len(missing) - 1} more clips" if len(missing) > 1 else ""
                expected = self.store.path(spec, missing[0])
                faults.append(f"no {stream} features of clip {missing[0]!r}{more}: expected {expected}; run: {command}")
        if faults:
            raise FeatureError(f"data set {self.name}: " + "\n".join(faults))

    def check_arrays(self) -> None:
        """Read every array once; raise FeatureError with the first faults and how many there are."""
        faults = []
        for clip in track(self.clips, f"checking {self.name}", disable=len(self) < 1000):
            for spec in self.specs.values():
                try:
                    self.store.read(spec, clip.name)
                except FeatureError as error:
                    faults.append(str(error))
        if faults:
            more = [f"… and {len(faults) - 5} more"] if len(faults) > 5 else []
            raise FeatureError(f"data set {self.name}: " + "\n".join([*faults[:5], *more]))


def open_dataset(name: str, config: DatasetConfig, model: ModelConfig, split: str) -> ClipDataset:
    """Return one data set's split, its features checked to be there.

    Raises ValueError for a bad table, FeatureError for missing features.
    """
    layout = LAYOUTS[config.face_or_frame]
    dataset = ClipDataset(
        name=name,
        clips=read_clips(name, config, split),
        config=config,
        store=FeatureStore(Path(config.preextracted_root), name),
        specs={stream: config.spec(stream, model.feature_dim(stream)) for stream in layout.needed},
    )
    dataset.check()
    return dataset


def open_datasets(config: Config, split: str) -> list[ClipDataset]:
    """Return every data set of a configuration (raises ValueError when it names none)."""
    if not config.datasets:
        raise ValueError("section datasets: expected at least one data set, found none")
    return [open_dataset(name, section, config.model, split) for name, section in config.datasets.items()]


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
        """Raise ValueError naming the first clips that lack a label which training would ask for, and their number."""
        faults = []
        for dataset in self.datasets:
            kind = dataset.config.label_type
            for clip in dataset.clips:
                for asked in HYBRID if kind == "hybird" else (kind,):
                    try:
                        self.prompts.answer(asked, clip)
                    except ValueError as error:
                        faults.append(str(error))
        if faults:
            raise ValueError("\n".join([*faults[:5], *([f"… and {len(faults) - 5} more"] if len(faults) > 5 else [])]))

    def __getitem__(self, draw: Draw) -> Sample:
        rng = np.random.default_rng((self.seed, draw.cycle, draw.index))
        dataset, index = self._locate(draw.index)
        clip = dataset.clips[index]
        features = _drop_streams(dataset.features(index), dataset.config.modality_dropout, rng)
        kind = dataset.config.label_type
        if kind == "hybird":
            kind = str(rng.choice(HYBRID))
        answer = self.prompts.answer(kind, clip)
        return make_sample(clip, features, dataset.config.face_or_frame, self.prompts, kind, self.tokens, answer)

    def _locate(self, index: int) -> tuple[ClipDataset, int]:
        for dataset in self.datasets:
            if index < len(dataset):
                return dataset, index
            index -= len(dataset)
        raise IndexError(index)


def make_sample(
    clip: Clip,
    features: dict[Modality, np.ndarray],
    layout: str,
    prompts: PromptBook,
    kind: str,
    tokens: dict[Modality, int],
    answer: str = "",
) -> Sample:
    """Return a clip with its prompt for one question kind; streams of zero rows are not shown."""
    present = {stream for stream, array in features.items() if len(array)}
    prompt = prompts.prompt(layout, present, clip.subtitle, prompts.question(kind), tokens)
    return Sample(clip=clip, features=features, prompt=prompt, answer=answer)


def _drop_streams(
    features: dict[Modality, np.ndarray], chance: float, rng: np.random.Generator
) -> dict[Modality, np.ndarray]:
    """Empty each stream with `chance`, but never the last one that is there."""
    present = [stream for stream, array in features.items() if len(array)]
    dropped = [stream for stream in present if rng.random() < chance]
    if present and len(dropped) == len(present):
        dropped.remove(dropped[int(rng.integers(len(dropped)))])
    return {stream: array[:0] if stream in dropped else array for stream, array in features.items()}
