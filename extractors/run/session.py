"""A run's settings and what is built from them: tasks, encoders, the maker of AU sentences, the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from affect.core.au_json import AuAnalysis
from affect.core.schema import Modality, check_name
from affect.faces.finders import face_finder_name
from affect.features.store import FeatureSpec, FeatureStore
from extractors.au.templates import describe_clips
from extractors.encoders import Encoder, build_encoder
from extractors.run.settings import TEMPLATES, ClipTask, Settings, find_audio, find_video, known_au_json, list_videos

Describe = Callable[[Sequence[tuple[AuAnalysis, Sequence[int]]]], list[AuAnalysis]]
"""A maker of AU sentences for some frames (0-based) of each of several clips."""

OPENFACE_TIME = 600.0
"""Seconds that OpenFace may take for one clip, beside the time limit of decoding it."""


class Session:
    """What a run works with; weights are loaded once, when they are first needed.

    writer: name of the one process that writes with its store; describe: a maker of AU sentences instead of the
    one that the settings name; build: makes an encoder of modality, name and device.
    """

    def __init__(
        self,
        settings: Settings,
        writer: str = "",
        describe: Describe | None = None,
        build: Callable[[Modality, str, str], Encoder] = build_encoder,
    ) -> None:
        self.settings = settings
        self.store = FeatureStore(settings.save_root, settings.dataset, writer=writer)
        self._describe = describe
        self._build = build
        self._encoders: dict[tuple[str, str], Encoder] = {}
        self._provenance: dict[Modality, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what was built: another process builds its own."""
        return {**self.__dict__, "_encoders": {}, "_describe": None}

    def task(
        self,
        name: str,
        streams: tuple[Modality, ...],
        au: bool = False,
        video: Path | None = None,
        audio: Path | None = None,
        table: Path | None = None,
    ) -> ClipTask:
        """Return what to do with one clip: its files, as given or found in the settings' folders, and how to read them.

        streams, au: as in `ClipTask`. Raises ValueError for a name that no file can have.
        """
        settings = self.settings
        video = video or find_video(settings.video_root, name)
        if table is None and settings.openface_root:
            table = settings.openface_root / f"{check_name(name)}.csv"
        by_openface = au and settings.measures and settings.openface_executable and not (table and table.is_file())
        known = not settings.overwrite and known_au_json(settings, name) if by_openface else None
        return ClipTask(
            settings,
            name,
            streams,
            au,
            video,
            audio or find_audio(settings.audio_root, name) or video,
            table,
            {stream: self.encoder(stream).prepare for stream in streams if stream != Modality.AU},
            OPENFACE_TIME if by_openface and not known else 0.0,
        )

    def encoder(self, stream: Modality) -> Encoder:
        """Return the encoder of a stream; frames and faces share one."""
        kind = Modality.FACE if stream == Modality.FRAME else stream
        key = (str(kind), self.settings.encoder_name(stream))
        if key not in self._encoders:
            self._encoders[key] = self._build(kind, key[1], self.settings.device)
        return self._encoders[key]

    @cached_property
    def specs(self) -> dict[Modality, FeatureSpec]:
        """Streams that features are made of, and which; raises what encoders raise whose weights are not there."""
        settings = self.settings
        rows = {Modality.FRAME: (settings.frame_count, settings.sampling), Modality.AUDIO: (settings.clips_per_video,)}
        return {
            stream: FeatureSpec(stream, settings.encoder_name(stream), self.encoder(stream).dim, *rows.get(stream, ()))
            for stream in settings.features
        }

    @property
    def describe(self) -> Describe:
        """Maker of AU sentences: the templates, or a language model."""
        settings = self.settings
        if self._describe is None and (settings.au_maker == TEMPLATES or "au_text" not in settings.stages):
            self._describe = describe_clips
        if self._describe is None:
            from extractors.au.agent import build_agent

            agent = build_agent(settings.au_maker, settings.au_adapter, settings.device, settings.au_agent_backend)
            self._describe = agent.describe_clips
        return self._describe

    @property
    def faces_from(self) -> str:
        """Where faces come from, in the words of the store's sidecar."""
        return "face arrays" if self.settings.face_root else face_finder_name(self.settings.face_finder)

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """Clips that more than one video in the folder is named after."""
        files = list_videos(self.settings.video_root) if self.settings.video_root else {}
        return frozenset(name for name, count in files.items() if count > 1)

    def provenance(self, stream: Modality) -> dict[str, Any]:
        """Return how the features of a stream are made, for the store's sidecar."""
        if stream not in self._provenance:  # asked for at every write, and library versions are read from disk
            faces = {"faces_from": self.faces_from} if stream == Modality.FACE else {}
            self._provenance[stream] = {**self.encoder(stream).provenance(), "dtype": self.settings.dtype, **faces}
        return self._provenance[stream]
