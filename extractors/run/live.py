"""Features made when a clip is asked for, behind the protocol of the feature store.

The model sees feature tensors only: "real time" means that the extractors run first and hand over the arrays that
the store would. Encoders work in the process that reads: on a GPU that is the one that trains or answers, on the CPU
each loader process of a training run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from affect.core.schema import Modality
from affect.faces.finders import face_array_places
from affect.features.arrays import check_finite
from affect.features.store import FeatureError, FeatureSpec
from extractors.encoders import Encoder, build_encoder
from extractors.run.clip import ENCODER_BATCH, ClipResult, encode_clips, log_warnings, prepare_clip
from extractors.run.session import ClipTask, Session, Settings, find_audio, find_video, known_au_json
from extractors.run.workers import ClipWorkers

CLIPS_KEPT = 64
"""Clips whose features are kept after the first time that they are asked for: a reader takes stream after stream."""


@cache
def shared_encoder(modality: Modality, name: str, device: str, precision: str | None) -> Encoder:
    """Return an encoder that is built once a process, whatever number of data sets it is for."""
    return build_encoder(modality, name, device, precision)


class LiveFeatures:
    """Some streams of a data set, those of the settings, encoded when they are asked for, the others from its store."""

    def __init__(self, settings: Settings) -> None:
        self.session = Session(settings, build=shared_encoder)
        self.store = self.session.store
        self.root = self.store.root
        self._unread: dict[str, ClipResult] = {}  # that nobody has asked for yet
        self._read: OrderedDict[str, ClipResult] = OrderedDict()  # the last ones that were asked for
        self._coming: Iterator[ClipResult] | None = None
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without the worker processes, which belong to this process."""
        return {**self.__dict__, "_coming": None}

    @property
    def specs(self) -> dict[Modality, FeatureSpec]:
        """The streams that are encoded, and how."""
        return self.session.specs

    def provenance(self, spec: FeatureSpec) -> dict[str, Any] | None:
        """Return how the features of a stream are made, or what the sidecar of the store says of stored ones."""
        live = self.specs.get(spec.modality) == spec
        return self.session.provenance(spec.modality) if live else self.store.provenance(spec)

    def read(self, spec: FeatureSpec, name: str) -> np.ndarray:
        """Return the features of one clip as float32 [T, D], as the store would; T is 0 where it has none.

        Raises FeatureError for a clip that cannot be read or encoded, and what the store raises.
        """
        stream = spec.modality
        if self.specs.get(stream) != spec:
            return self.store.read(spec, name)
        result = self._result(name)
        stages = ("au_json", "au_text", stream) if stream == Modality.AU else (stream,)
        if failed := [stage for stage in stages if stage in result.errors]:
            raise FeatureError(f"clip {name!r} has no {stream} features: {result.errors[failed[0]]}")
        check_finite(result.features[stream], f"{stream} features of clip {name!r}")
        return result.features[stream].copy()

    def missing(self, spec: FeatureSpec, names: Iterable[str]) -> list[str]:
        """Return the clips that have nothing to encode, or nothing stored where that is read."""
        if self.specs.get(spec.modality) != spec:
            return self.store.missing(spec, names)
        return [name for name in names if not self._has_source(spec.modality, name)]

    @contextmanager
    def ahead(self, names: Sequence[str], workers: ClipWorkers | None = None) -> Iterator[None]:
        """Let worker processes decode clips ahead of the reader, who will ask for them in this order.

        workers: a pool to use, by default one of its own until the block ends.
        """
        if not names or self.specs.keys() <= {Modality.AU}:  # reading JSON takes less time than starting processes
            yield
            return
        settings = self.session.settings
        with nullcontext(workers) if workers else ClipWorkers(settings.workers, settings.time_limit) as pool:
            self._coming = pool.prepare(self._task(name) for name in names)
            try:
                yield
            finally:
                self._coming = None

    def _result(self, name: str) -> ClipResult:
        if name not in self._read:
            if name not in self._unread:
                self._fetch(name)
            self._read[name] = self._unread.pop(name)
            if len(self._read) > CLIPS_KEPT:
                self._read.popitem(last=False)
        return self._read[name]

    def _fetch(self, name: str) -> None:
        """Decode and encode a clip, and before it whatever else the workers have ready."""
        clips = []
        for clip in self._coming or ():
            clips.append(clip)
            if clip.name == name or len(clips) == ENCODER_BATCH:
                self._encode(clips)
                clips = []
            if clip.name == name:
                return
        self._encode([*clips, prepare_clip(self._task(name))])

    def _encode(self, clips: Sequence[ClipResult]) -> None:
        """Encode every live stream of some clips, and keep nothing but features and errors of them."""
        log_warnings(clips, self._warned)
        encode_clips(self.session, clips)
        for clip in clips:
            clip.items.clear()
            clip.analysis = None
            self._unread[clip.name] = clip

    def _task(self, name: str) -> ClipTask:
        settings = self.session.settings
        peaks = Modality.FRAME in self.specs and settings.sampling == "emotion_peak" and settings.au_root is not None
        return self.session.task(name, tuple(self.specs), au=peaks or Modality.AU in self.specs)

    def _has_source(self, stream: Modality, name: str) -> bool:
        settings = self.session.settings
        if stream == Modality.AU:
            return known_au_json(settings, name) is not None
        if stream == Modality.FACE and settings.face_root:
            return any(path.is_file() for path in face_array_places(settings.face_root, name))
        if stream == Modality.AUDIO and find_audio(settings.audio_root, name):
            return True
        return find_video(settings.video_root, name) is not None
