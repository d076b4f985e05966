"""Features made when a clip is asked for, behind the protocol of the feature store.

The model sees feature tensors only: "real time" means that the extractors run first and hand over the arrays that
the store would. Encoders work in the process that reads: on a GPU that is the one that trains or answers, on the CPU
each loader process of a training run.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.au_json import au_json_path, find_au_json, require_sentences
from affect.core.layouts import LAYOUTS
from affect.core.schema import Modality
from affect.data.config import Config, ConfigError, DatasetConfig, ModelConfig
from affect.data.known_datasets import dataset_name, media_roots
from affect.faces.finders import face_finder_name
from affect.features.arrays import check_finite
from affect.features.store import FeatureError, FeatureSpec, FeatureStore
from extractors.encoders import Encoder, build_encoder
from extractors.media.decode import MediaTask, find_audio, find_video
from extractors.run.clip import AuTask, ClipTask, PreparedClip, Sources, prepare_clip, reason_of
from extractors.run.driver import ENCODER_BATCH
from extractors.run.workers import ClipWorkers

logger = logging.getLogger(__name__)

MEDIA = (Modality.FRAME, Modality.FACE, Modality.AUDIO)
"""Streams that are encoded on the fly where a data set says so; AU has a setting of its own."""
CLIPS_KEPT = 64
"""Clips whose features are kept after the first time that they are asked for: a reader takes stream after stream."""
TIME_LIMIT = 60.0
"""Seconds that decoding one clip may take in a worker process."""


@cache
def shared_encoder(modality: Modality, name: str, device: str) -> Encoder:
    """Return the encoder of a stream, built once a process; frames and faces share one."""
    return build_encoder(Modality.FACE if modality == Modality.FRAME else modality, name, device)


@dataclass
class LiveFeatures:
    """Some streams of a data set encoded when they are asked for, the others from its store."""

    store: FeatureStore
    specs: dict[Modality, FeatureSpec]
    """The streams that are encoded, and how."""
    sources: Sources
    device: str = "cpu"
    _unread: dict[str, dict[Modality, np.ndarray | str]] = field(default_factory=dict, init=False)
    """Clip that nobody has asked for yet -> stream -> its features, or why there are none."""
    _read: OrderedDict[str, dict[Modality, np.ndarray | str]] = field(default_factory=OrderedDict, init=False)
    """The last clips that were asked for."""
    _coming: Iterator[tuple[ClipTask, PreparedClip]] | None = field(default=None, init=False)
    _warned: set[str] = field(default_factory=set, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the worker processes, which belong to this process."""
        return {**self.__dict__, "_coming": None}

    @property
    def root(self) -> Path:
        """Folder of the stored features."""
        return self.store.root

    @property
    def faces_from(self) -> str:
        """Where faces come from, in the words of the store's sidecar."""
        return "face arrays" if self.sources.face_root else face_finder_name()

    def read(self, spec: FeatureSpec, name: str) -> np.ndarray:
        """Return the features of one clip as float32 [T, D], as the store would; T is 0 where it has none.

        Raises FeatureError for a clip that cannot be read or encoded, and what the store raises.
        """
        if self.specs.get(spec.modality) != spec:
            return self.store.read(spec, name)
        made = self._features(name)[spec.modality]
        if isinstance(made, str):
            raise FeatureError(f"clip {name!r} has no {spec.modality} features: {made}")
        check_finite(made, f"{spec.modality} features of clip {name!r}")
        return made.copy()

    def missing(self, spec: FeatureSpec, names: Iterable[str]) -> list[str]:
        """Return the clips that have nothing to encode, or nothing stored where that is read."""
        if self.specs.get(spec.modality) != spec:
            return self.store.missing(spec, names)
        return [name for name in names if not self._has_source(spec.modality, name)]

    @contextmanager
    def ahead(self, names: Sequence[str], workers: ClipWorkers | None = None) -> Iterator[None]:
        """Let worker processes decode clips ahead of the reader, who will ask for them in this order.

        workers: a pool to use, by default one of two processes until the block ends.
        """
        if not names or self.specs.keys() <= {Modality.AU}:  # reading JSON takes less time than starting processes
            yield
            return
        with nullcontext(workers) if workers else ClipWorkers(2, TIME_LIMIT) as pool:
            self._coming = pool.prepare(self._task(name) for name in names)
            try:
                yield
            finally:
                self._coming = None

    def _features(self, name: str) -> dict[Modality, np.ndarray | str]:
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
        for _, clip in self._coming or ():
            clips.append(clip)
            if clip.name == name or len(clips) == ENCODER_BATCH:
                self._encode(clips)
                clips = []
            if clip.name == name:
                return
        self._encode([*clips, prepare_clip(self._task(name))])

    def _encode(self, clips: Sequence[PreparedClip]) -> None:
        """Encode every live stream of some clips, each stream of all clips together."""
        for text in dict.fromkeys(text for clip in clips for text in clip.warnings):
            if text not in self._warned:
                self._warned.add(text)
                logger.warning("%s", text)
        made: dict[str, dict[Modality, np.ndarray | str]] = {clip.name: {} for clip in clips}
        for stream, spec in self.specs.items():
            encoder = shared_encoder(stream, spec.encoder, self.device)
            items: dict[str, Any] = {}
            for clip in clips:
                try:
                    items[clip.name] = self._item(stream, clip, encoder)
                except ValueError as error:
                    made[clip.name][stream] = reason_of(error)
            for name, array in zip(items, _all_or_each(encoder, list(items.values())), strict=True):
                made[name][stream] = array
        self._unread |= made

    def _item(self, stream: Modality, clip: PreparedClip, encoder: Encoder) -> Any:
        """Return what the encoder of a stream takes of a clip (raises ValueError saying why there is nothing)."""
        error = clip.errors.get("au_json" if stream == Modality.AU else stream)
        if error:
            raise ValueError(error)
        if stream != Modality.AU:
            return clip.media.items[stream]
        path = au_json_path(self.sources.au_root, self.store.dataset, clip.name)
        return encoder.prepare(require_sentences(clip.analysis, path))

    def _task(self, name: str) -> ClipTask:
        frame, sound = self.specs.get(Modality.FRAME), self.specs.get(Modality.AUDIO)
        media = tuple(stream for stream in self.specs if stream != Modality.AU)
        video = find_video(self.sources.video_root, name)
        peaks = frame is not None and frame.sampling == "emotion_peak" and self.sources.au_root is not None
        au = AuTask(self.sources, self.store.dataset, measure=False) if peaks or Modality.AU in self.specs else None
        return ClipTask(
            MediaTask(
                name=name,
                video=video,
                audio=find_audio(self.sources.audio_root, name) or video,
                streams=media,
                face_root=self.sources.face_root,
                frame_count=frame.count if frame else 8,
                # without peaks of the clip that sampling is the uniform one
                sampling=frame.sampling if frame and (peaks or frame.sampling != "emotion_peak") else "uniform",
                clips_per_video=sound.count if sound else 8,
                prepare={
                    stream: shared_encoder(stream, self.specs[stream].encoder, self.device).prepare for stream in media
                },
            ),
            asked=tuple(self.specs),
            au=au,
        )

    def _has_source(self, stream: Modality, name: str) -> bool:
        sources = self.sources
        if stream == Modality.AU:
            with suppress(FileNotFoundError):
                return find_au_json(sources.au_root, self.store.dataset, name).is_file()
            return False
        if stream == Modality.FACE and sources.face_root:
            places = (sources.face_root / f"{name}.npy", sources.face_root / name / f"{name}.npy")
            return any(path.is_file() for path in places)
        if stream == Modality.AUDIO and find_audio(sources.audio_root, name):
            return True
        return find_video(sources.video_root, name) is not None


def live_streams(name: str, section: DatasetConfig, model: ModelConfig, realtime_au: bool = False) -> list[Modality]:
    """Return the streams of a data set that are encoded when they are asked for.

    realtime_au: encode the sentences of AU JSON files. Raises ConfigError where that is asked for without such files.
    """
    needed = LAYOUTS[section.face_or_frame].needed
    if realtime_au and Modality.AU in needed and not section.mer_factory_output:
        raise ConfigError(
            "inference.use_au_clip_realtime: expected mer_factory_output, the root of the AU JSON files to encode the "
            f"sentences of, found nothing for data set {name}; set inference.mer_factory_output"
        )
    on_the_fly = not section.use_preextracted_features and not model.skip_encoders
    if not section.use_preextracted_features and model.skip_encoders:
        logger.info(
            "data set %s: model.skip_encoders is True, so its features are read from %s, although "
            "use_preextracted_features is False",
            name,
            section.preextracted_root,
        )
    live = {*(MEDIA if on_the_fly else ()), *([Modality.AU] if realtime_au else [])}
    return [stream for stream in needed if stream in live]


def open_store(
    name: str, section: DatasetConfig, model: ModelConfig, device: str = "cpu", realtime_au: bool = False
) -> FeatureStore | LiveFeatures:
    """Return where the features of a data set come from: its store, with encoders before it where the section says so.

    Raises ConfigError where raw clips are not named or an encoder is not as wide as the model expects, and what
    `build_encoder` raises.
    """
    store = FeatureStore(Path(section.preextracted_root), dataset_name(name))
    streams = live_streams(name, section, model, realtime_au)
    if not streams:
        return store
    specs = {stream: section.spec(stream, model.feature_dim(stream)) for stream in streams}
    sources = _sources(name, section, streams)
    for stream, spec in specs.items():
        found = shared_encoder(stream, spec.encoder, device).dim
        if found != spec.dim:
            raise ConfigError(
                f"data set {name}: encoder {spec.encoder} gives {found} numbers a row, but the model expects "
                f"{spec.dim} of {stream}; name another encoder, or correct model.preextracted_*_dim"
            )
    if Modality.FRAME in specs and section.frame_sampling == "emotion_peak" and sources.au_root is None:
        logger.info("data set %s: frame_sampling emotion_peak without mer_factory_output: frames are uniform", name)
    logger.info("data set %s: %s encoded when a clip is asked for, on %s", name, ", ".join(streams), device)
    return LiveFeatures(store, specs, sources, device)


def live_stores(config: Config, device: str) -> dict[str, LiveFeatures]:
    """Return data set -> its features for training, for the data sets that are encoded on the fly.

    device: that of the model. On a GPU `run.num_workers` becomes 0: a forked loader process cannot use it.
    """
    stores = {
        name: store
        for name, section in config.datasets.items()
        if isinstance(store := open_store(name, section, config.model, str(device)), LiveFeatures)
    }
    if stores and str(device) != "cpu" and config.run.num_workers:
        logger.info("run.num_workers counts as 0: clips that are encoded on a GPU are read in the process that has it")
        config.run.num_workers = 0
    return stores


def warn_of_other_faces(trained: Config, found: str) -> None:
    """Say so where faces come from elsewhere than those that a model was trained on, in the words of sidecars.

    trained: the model's configuration, whose features may be on this machine.
    """
    for name, section in trained.datasets.items():
        if Modality.FACE not in LAYOUTS[section.face_or_frame].needed:
            continue
        store = FeatureStore(Path(section.preextracted_root), dataset_name(name))
        spec = section.spec(Modality.FACE, trained.model.preextracted_visual_dim)
        expected = (store.provenance(spec) or {}).get("faces_from", found)
        if expected != found:
            logger.warning(
                "faces come from %s here, but from %s in the features of %s that the model was trained on: crops and "
                "colours of the two differ",
                found,
                expected,
                name,
            )


def _sources(name: str, section: DatasetConfig, streams: Sequence[Modality]) -> Sources:
    """Return where the raw clips are (raises ConfigError where the section does not say)."""
    known = media_roots(name, section)
    roots: Mapping[str, Path | None] = {
        "video_root": known.video,
        "audio_root": known.audio,
        "face_root": known.face,
    }
    for stream, keys in (
        (Modality.FRAME, ("video_root",)),
        (Modality.FACE, ("face_root", "video_root")),
        (Modality.AUDIO, ("audio_root", "video_root")),
    ):
        given = [roots[key] for key in keys if roots[key]]
        if stream in streams and not any(root.is_dir() for root in given):
            raise ConfigError(
                f"data set {name}: expected {' or '.join(keys)}, a folder to encode {stream} from, found "
                f"{' or '.join(map(str, given)) or 'nothing'}; name it, or set use_preextracted_features to True"
            )
    return Sources(**roots, au_root=Path(section.mer_factory_output) if section.mer_factory_output else None)


def _all_or_each(encoder: Encoder, items: list[Any]) -> list[np.ndarray | str]:
    """Return the features of each item, all at once; when that fails, one by one, a reason for those that fail."""
    if not items:
        return []
    try:
        return list(encoder(items))
    except Exception as error:  # whatever a library raises on one clip, the others go on
        if len(items) == 1:
            return [reason_of(error)]
        return [made for item in items for made in _all_or_each(encoder, [item])]
