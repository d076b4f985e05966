"""What decides what is made of clips, the task of one, and what is built from it all: encoders, store.

Settings and tasks are plain values that can be sent to other machines.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affect.core.au_json import AuAnalysis, au_json_path, find_au_json, read_au_json
from affect.core.schema import STORED_MODALITIES, Modality, check_name
from affect.faces.mediapipe_pipe import mediapipe_version
from affect.features.provenance import au_makers, said
from affect.features.store import FeatureSpec, FeatureStore
from extractors.au.templates import describe_clips

if TYPE_CHECKING:  # libraries of sound and pictures wait until a run needs them
    from extractors.encoders import Encoder

STAGES = ("au_json", "au_text", "features")
TEMPLATES = "templates"
AU_BACKENDS = ("openface", "mediapipe", "pyfeat")
"""What measures action units."""
PRECISIONS = ("float32", "bfloat16", "float16")
GEOMETRIES = ("squash", "crop")
REFERENCE_ENCODERS = ("CLIP_VIT_LARGE", "SIGLIP_SO", "DINO2_LARGE")
"""Encoders of pictures that the reference has, which squashes what they see."""
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".webm", ".wmv", ".flv", ".m4v")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg")

logger = logging.getLogger(__name__)

Describe = Callable[[Sequence[tuple[AuAnalysis, Sequence[int]]]], list[AuAnalysis]]
"""A maker of AU sentences for some frames (0-based) of each of several clips."""

OPENFACE_TIME = 600.0
"""Seconds that OpenFace may take for one clip, beside the time limit of decoding it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the raw material of clips is, what is made of it, how, and to where.

    A folder holds files that are named after the clips. The defaults are those of the extraction command.
    """

    dataset: str
    save_root: Path = Path("preextracted_features")
    video_root: Path | None = None
    audio_root: Path | None = None
    face_root: Path | None = None
    openface_root: Path | None = None
    """OpenFace tables {name}.csv; new ones are put there."""
    openface_executable: str | None = None
    openface_args: tuple[str, ...] = ()
    au_root: Path | None = None
    """AU JSON files (MER-Factory's output folder)."""
    au_backend: str = "openface"
    """What measures the action units of a clip without AU JSON: one of `AU_BACKENDS`."""
    allow_mismatch: bool = False
    """Whether to take action units that were measured on another number of frames than the video has, or whose makers
    are not those of the other clips."""
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
    frame_geometry: str | None = None
    """squash: an encoder sees whole frames, brought to 224 x 224 before; crop: what its own preprocessing leaves of
    them. None: as the folder that is there has it, else squash for the encoders that have a short name."""
    face_finder: str = "auto"
    device: str = "cpu"
    precision: str | None = None
    """Numbers that encoders with weights compute in: float32, bfloat16 or float16. None: float32 where the folder that
    is there began in it, else what the device is quickest in."""
    dtype: str = "float32"
    """Numbers that features are stored in: float32 or float16."""
    workers: int = 2
    time_limit: float = 60.0
    """Seconds that measuring and decoding one clip may take."""
    progress: bool = True
    """Whether to draw a progress bar."""
    overwrite: bool = False
    retry_failed: bool = False
    """Try clips again that failed before, even where their files have not changed."""

    @property
    def features(self) -> tuple[Modality, ...]:
        """Streams whose features are made."""
        return self.streams if "features" in self.stages else ()

    @property
    def wants_au(self) -> bool:
        """Whether action units are measured or read at all."""
        return Modality.AU in self.features or self.sampling == "emotion_peak" or "features" not in self.stages

    @property
    def measures(self) -> bool:
        """Whether action units are measured where there is no AU JSON."""
        return "au_json" in self.stages

    @property
    def parts(self) -> set[str]:
        """Stages and streams that a clip can fail at."""
        return {"name", *(("au_json", "au_text") if self.wants_au else ()), *map(str, self.features)}

    def encoder_name(self, stream: Modality) -> str:
        """Return the name of the encoder of a stream."""
        return {Modality.AUDIO: self.acoustic_encoder, Modality.AU: self.au_encoder}.get(stream, self.visual_encoder)


@dataclass(frozen=True)
class ClipTask:
    """What to do with one clip before it can be described and encoded; `Session.task` makes it."""

    settings: Settings
    name: str
    streams: tuple[Modality, ...]
    """Streams to extract; all but the action units are decoded."""
    au: bool = False
    """Whether its action units are measured, or read where that was done."""
    video: Path | None = None
    audio: Path | None = None
    """Sound file, or the video itself."""
    table: Path | None = None
    """Where its OpenFace table is, or would be put."""
    prepare: Mapping[Modality, Callable[[Any], Any]] = field(default_factory=dict)
    """What the encoder of a stream wants done to a clip before it is sent on; nothing where it is not named."""
    squashed: tuple[Modality, ...] = ()
    """Streams whose pictures are squashed to 224 x 224 first."""
    extra_time: float = 0.0
    """Seconds beyond the usual limit that this clip may take."""
    reader: str = "auto"
    """auto, or pyav where decord is not to be tried."""
    measured_by: str | None = None
    """The AU backend that the other clips of its data set were measured by; None where any will do."""

    @property
    def seen(self) -> tuple[Modality, ...]:
        """Streams that frames of the video are decoded for."""
        pictures = (Modality.FRAME,) if self.settings.face_root else (Modality.FRAME, Modality.FACE)
        return tuple(stream for stream in self.streams if stream in pictures)

    @property
    def sampling(self) -> str:
        """How scene frames are chosen; a clip whose action units nobody asks for has no peaks to go by."""
        sampling = self.settings.sampling
        return sampling if self.au or sampling != "emotion_peak" else "uniform"


class Session:
    """What a run works with; weights are loaded once, when they are first needed.

    writer: name of this process's log of clips; describe: a maker of AU sentences instead of the
    one that the settings name; build: makes an encoder of modality, name, device and precision instead of
    `build_encoder`.
    """

    def __init__(
        self,
        settings: Settings,
        writer: str = "",
        describe: Describe | None = None,
        build: Callable[[Modality, str, str, str | None], Encoder] | None = None,
    ) -> None:
        self.settings = settings
        self.writer = writer
        self.store = FeatureStore(settings.save_root, settings.dataset)
        self._describe = describe
        self._build = build
        self._encoders: dict[tuple[str, str, str | None], Encoder] = {}
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
            tuple(stream for stream in streams if self.geometry.get(stream) == "squash"),
            OPENFACE_TIME if by_openface and not known else 0.0,
        )

    def encoder(self, stream: Modality) -> Encoder:
        """Return the encoder of a stream; frames and faces share one."""
        kind = Modality.FACE if stream == Modality.FRAME else stream
        key = (str(kind), self.settings.encoder_name(stream), self.precision[stream])
        if key not in self._encoders:
            from extractors.encoders import build_encoder

            self._encoders[key] = (self._build or build_encoder)(kind, key[1], self.settings.device, key[2])
        return self._encoders[key]

    @cached_property
    def precision(self) -> dict[Modality, str | None]:
        """Stream -> numbers that its encoder computes in; None: what its device is quickest in.

        What was begun in float32 goes on in it, on whatever device: only so are the numbers the same.
        """
        found = {}
        for stream in self.settings.features:
            found[stream] = self.settings.precision
            if not found[stream] and self._there(stream, "precision") == "float32":
                found[stream] = "float32"
                if self.settings.device != "cpu":
                    logger.info("%s features of %s go on in float32, as they began", stream, self.store.root)
        return found

    @cached_property
    def specs(self) -> dict[Modality, FeatureSpec]:
        """Streams that features are made of, and which; raises what encoders raise whose weights are not there."""
        settings = self.settings
        return {stream: self._spec(stream, self.encoder(stream).dim) for stream in settings.features}

    @cached_property
    def geometry(self) -> dict[Modality, str]:
        """Stream -> what is done to its pictures before their encoder prepares them: squash or crop.

        Faces that are found in videos are cut out in one size and not here.
        """
        settings = self.settings
        pictures = (Modality.FRAME, Modality.FACE) if settings.face_root else (Modality.FRAME,)
        usual = "squash" if settings.visual_encoder in REFERENCE_ENCODERS else "crop"
        return {
            stream: settings.frame_geometry or self._there(stream, "frame_geometry") or usual
            for stream in pictures
            if stream in settings.features
        }

    def _there(self, stream: Modality, key: str) -> Any:
        """Return what the sidecar of a stream's folder says of a key, None where there is no such sidecar."""
        sidecar = self.store.provenance(self._spec(stream, 1))
        return said(sidecar, key) if sidecar else None

    def _spec(self, stream: Modality, dim: int) -> FeatureSpec:
        settings = self.settings
        rows = {Modality.FRAME: (settings.frame_count, settings.sampling), Modality.AUDIO: (settings.clips_per_video,)}
        return FeatureSpec(stream, settings.encoder_name(stream), dim, *rows.get(stream, ()))

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
        from affect.faces.finders import face_finder_name  # brings OpenCV

        return "face arrays" if self.settings.face_root else face_finder_name(self.settings.face_finder)

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """Clips that more than one video in the folder is named after."""
        files = list_clips(self.settings.video_root) if self.settings.video_root else {}
        return frozenset(name for name, count in files.items() if count > 1)

    @cached_property
    def measured_by(self) -> str | None:
        """The AU backend that the data set's action units are by: as the sidecar says, or else the first AU JSON.

        None where there is none yet, or others are allowed.
        """
        root = self.settings.au_root
        if root is None or self.settings.allow_mismatch:
            return None
        if known := self._there(Modality.AU, "measured_by"):
            return known
        folders = (au_json_path(root, self.settings.dataset, "any").parent.parent, root)
        first = next((path for folder in folders for path in folder.glob("*/*_au_analysis.json")), None)
        try:
            return read_au_json(first).measured_by if first else None
        except ValueError:  # told when its clip is read
            return None

    def provenance(self, stream: Modality, analysis: AuAnalysis | None = None) -> dict[str, Any]:
        """Return how the features of a stream are made, for the store's sidecar; analysis: of the clip, for its AU."""
        if stream not in self._provenance:  # asked for at every write, and library versions are read from disk
            more = {"faces_from": self.faces_from} if stream == Modality.FACE else {}
            more |= {"frame_geometry": self.geometry[stream]} if stream in self.geometry else {}
            self._provenance[stream] = {**self.encoder(stream).provenance(), "dtype": self.settings.dtype, **more}
        if stream != Modality.AU or analysis is None or self.settings.allow_mismatch:
            return self._provenance[stream]
        return self._provenance[stream] | au_makers(analysis, self.settings.au_encoder)


def check_backend(name: str) -> None:
    """Raise ValueError for an unknown AU backend, ModuleNotFoundError for one whose package is absent.

    OpenFace is no Python package; whether its tables or its binary are there shows when they are asked for.
    """
    if name not in AU_BACKENDS:
        raise ValueError(f"AU backend {name!r} is not known: expected one of {', '.join(AU_BACKENDS)}; correct it")
    if name == "mediapipe":
        mediapipe_version()
    if name == "pyfeat" and importlib.util.find_spec("feat") is None:
        raise ModuleNotFoundError(
            "AU backend 'pyfeat' needs a package that is not installed: pip install 'affect[pyfeat]', or use openface"
        )


def known_au_json(settings: Settings, name: str) -> Path | None:
    """Return where the AU JSON of a clip is, None where it has none."""
    try:
        return find_au_json(settings.au_root, settings.dataset, name) if settings.au_root else None
    except FileNotFoundError:
        return None


def find_video(root: Path | None, name: str) -> Path | None:
    """Return the video of a clip under any known suffix, or None."""
    return _find(root, name, VIDEO_SUFFIXES)


def find_audio(root: Path | None, name: str) -> Path | None:
    """Return the sound file of a clip under any known suffix, or None."""
    return _find(root, name, AUDIO_SUFFIXES)


def list_clips(root: Path, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> Counter[str]:
    """Return the names of all clips in a folder, with the number of files that have each (2: `a.mp4` and `a.avi`)."""
    if not root.is_dir():
        return Counter()
    with os.scandir(root) as entries:
        # a link that leads nowhere is a clip that fails; a hidden file is none: macOS puts "._a.mp4" beside "a.mp4"
        there = [Path(entry.name) for entry in entries if entry.is_symlink() or entry.is_file()]
    return Counter(path.stem for path in there if path.suffix.lower() in suffixes and not path.name.startswith("."))


def _find(root: Path | None, name: str, suffixes: tuple[str, ...]) -> Path | None:
    check_name(name)
    for suffix in suffixes if root else ():
        for spelling in (suffix, suffix.upper(), suffix.title()):
            path = root / f"{name}{spelling}"
            if path.is_file():
                return path
    return None
