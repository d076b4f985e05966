"""A run's settings by name, and what is built from them: the plan, the encoders, the maker of AU sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from affect.core.schema import STORED_MODALITIES, Modality
from affect.features.store import FeatureSpec, FeatureStore
from extractors.au.templates import describe_clips
from extractors.encoders import Encoder, build_encoder
from extractors.run.clip import Describe, Sources
from extractors.run.planning import STAGES, Plan

TEMPLATES = "templates"


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run makes, in plain values, so that it can be sent to other machines."""

    dataset: str
    save_root: Path
    sources: Sources = field(default_factory=Sources)
    streams: tuple[Modality, ...] = STORED_MODALITIES
    stages: tuple[str, ...] = STAGES
    visual_encoder: str = "CLIP_VIT_LARGE"
    acoustic_encoder: str = "HUBERT_LARGE"
    au_encoder: str = "CLIP_VITB32"
    au_maker: str = TEMPLATES
    au_adapter: str | None = None
    au_agent_backend: str = "hf"
    sampling: str = "uniform"
    frame_count: int = 8
    clips_per_video: int = 8
    face_finder: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    workers: int = 2
    time_limit: float = 60.0
    ambiguous: frozenset[str] = frozenset()
    progress: bool = True
    overwrite: bool = False
    retry_failed: bool = False

    def encoder_name(self, stream: Modality) -> str:
        """Return the name of the encoder of a stream."""
        return {Modality.AUDIO: self.acoustic_encoder, Modality.AU: self.au_encoder}.get(stream, self.visual_encoder)

    def store(self, writer: str) -> FeatureStore:
        """Return the features of the data set, for a run that is known as `writer`."""
        return FeatureStore(self.save_root, self.dataset, writer=writer)

    def plan(self, names: Sequence[str], writer: str, dim: Callable[[Modality], int]) -> Plan:
        """Return the plan for some clips; dim: stream -> width of its features."""
        streams = self.streams if "features" in self.stages else ()
        return Plan(
            dataset=self.dataset,
            names=names,
            sources=self.sources,
            store=self.store(writer),
            specs={stream: self._spec(stream, dim(stream)) for stream in streams},
            stages=self.stages,
            sampling=self.sampling,
            frame_count=self.frame_count,
            face_finder=self.face_finder,
            workers=self.workers,
            time_limit=self.time_limit,
            dtype=self.dtype,
            ambiguous=self.ambiguous,
            progress=self.progress,
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
        )

    def _spec(self, stream: Modality, dim: int) -> FeatureSpec:
        name = self.encoder_name(stream)
        if stream == Modality.FRAME:
            return FeatureSpec(stream, name, dim, self.frame_count, self.sampling)
        return FeatureSpec(stream, name, dim, self.clips_per_video if stream == Modality.AUDIO else 8)


class Session:
    """The built parts of a run; weights are loaded once, when they are first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._encoders: dict[tuple[str, str], Encoder] = {}

    def encoder(self, stream: Modality) -> Encoder:
        """Return the encoder of a stream; frames and faces share one."""
        kind = Modality.FACE if stream == Modality.FRAME else stream
        key = (str(kind), self.settings.encoder_name(stream))
        if key not in self._encoders:
            self._encoders[key] = build_encoder(kind, key[1], self.settings.device)
        return self._encoders[key]

    @cached_property
    def describe(self) -> Describe:
        """Maker of AU sentences: the templates, or a language model."""
        settings = self.settings
        if settings.au_maker == TEMPLATES or "au_text" not in settings.stages:
            return describe_clips

        from extractors.au.agent import build_agent

        agent = build_agent(settings.au_maker, settings.au_adapter, settings.device, settings.au_agent_backend)
        return agent.describe_clips

    def plan(self, names: Sequence[str], writer: str) -> Plan:
        """Return the plan for some clips; raises what encoders raise whose weights are not there."""
        return self.settings.plan(names, writer, lambda stream: self.encoder(stream).dim)
