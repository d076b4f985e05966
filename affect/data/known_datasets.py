"""The data sets that users of this kind of system have: all facts that training and scoring go by, each once.

To add one, add an entry to `KNOWN_DATASETS`; a data set of one's own needs none, its table of clips says everything
(docs/datasets.md). Paths are those of the published folders, below `data_root`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that scoring reads no configuration
    from affect.data.config import DatasetConfig

POSITIVE, NEGATIVE, NEUTRAL = "positive", "negative", "neutral"
"""Words for a valence above, below and of exactly 0."""


class Task(StrEnum):
    """How the answers to a data set are scored."""

    HIT_RATE = "hitrate"
    SENTIMENT = "sentiment"
    EW = "ew"


@dataclass(frozen=True)
class Column:
    """One value for each clip: a column of a CSV file, or a key of a corpus in an .npz file."""

    file: str
    key: str
    corpus: str = ""
    """Corpus name -> {key: value} of an .npz file."""


@dataclass(frozen=True)
class Split:
    """Where the labels of a split are; its clips are those that the first column given has."""

    labels: Column | None = None
    valences: Column | None = None
    descriptions: Column | None = None
    names: Column | None = None
    """For a split without labels."""
    only: str = ".*"
    """Pattern of the names that belong to the split, where its file holds others too."""

    @property
    def clips(self) -> Column:
        """The column that says which clips there are."""
        return next(column for column in (self.labels, self.valences, self.names) if column)


@dataclass(frozen=True)
class KnownDataset:
    """What is known of a data set beforehand."""

    folder: str
    """Folder below `data_root`."""
    subtitles: Column
    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    """Labels of which a clip has one, in the order of their numbers; none: the vocabulary is open."""
    numbered: bool = False
    """Labels are kept as numbers of classes."""
    valence_range: tuple[float, float] | None = None
    video: str = "video"
    audio: str = "audio"
    faces: str = "openface_face"
    also: tuple[str, ...] = ()
    """Other names that it goes by, in lower case."""
    benchmark: str = ""
    """Name in the tables of MER-UniBench; none: it is not scored there."""
    test_clips: int = 0
    """Clips of the published test set."""

    @property
    def files(self) -> set[str]:
        """Names of the files that its splits are read from."""
        parts = [(split.labels, split.valences, split.descriptions, split.names) for split in self.splits.values()]
        return {column.file for columns in parts for column in columns if column}

    @property
    def task(self) -> Task:
        """How its answers are scored."""
        return Task.SENTIMENT if self.valence_range else Task.HIT_RATE if self.classes else Task.EW

    def word(self, label: Any, where: str) -> Any:
        """Return a label as a word where it is the number of a class (raises ValueError when there is none)."""
        if not self.classes or not isinstance(label, Integral):
            return label
        if not self.numbered or not 0 <= label < len(self.classes):
            numbers = f"a number from 0 to {len(self.classes) - 1}" if self.numbered else "words"
            raise ValueError(f"{where} has the label {label}: expected {numbers}; correct it")
        return self.classes[label]


@dataclass(frozen=True)
class Choices:
    """What the answers to a data set's questions are chosen from."""

    labels: tuple[str, ...] = ()
    valence_range: tuple[float, float] | None = None


NO_CHOICES = Choices()


@dataclass(frozen=True)
class MediaRoots:
    """Folders of a data set's raw clips."""

    video: Path | None
    audio: Path | None
    """None: the sound is that of the video."""
    face: Path | None
    """Face crops, `{name}.npy` or `{name}/{name}.npy`; None: faces are looked for in the video."""


def _corpora(file: str, key: str, **corpora: str) -> dict[str, Split]:
    """Return split -> labels (emo) or valences (val) in the corpora of one .npz file."""
    field = "labels" if key == "emo" else "valences"
    return {split: Split(**{field: Column(file, key, corpus)}) for split, corpus in corpora.items()}


def _mer2025(**splits: Split) -> KnownDataset:
    return KnownDataset("mer2025-dataset", Column("subtitle_chieng.csv", "english"), splits)


def _described(name: str) -> Split:
    labels, reasons = (f"track{track}_train_{name}.csv" for track in (2, 3))
    return Split(Column(labels, "openset"), descriptions=Column(reasons, "reason"))


def _six_classes(folder: str, subtitles: Column, benchmark: str, test_clips: int) -> KnownDataset:
    splits = _corpora("label-6way.npz", "emo", train="train_corpus", test="test1_corpus")
    classes = ("neutral", "angry", "happy", "sad", "worried", "surprise")
    return KnownDataset(folder, subtitles, splits, classes, benchmark=benchmark, test_clips=test_clips)


def _valences(folder: str, limit: float, benchmark: str, test_clips: int, *also: str, **media: str) -> KnownDataset:
    splits = _corpora("label.npz", "val", **_TRAIN_VAL_TEST)
    scored = {"benchmark": benchmark, "test_clips": test_clips}
    return KnownDataset(folder, _ENGLISH, splits, valence_range=(-limit, limit), also=also, **media, **scored)


_TRAIN_VAL_TEST = {"train": "train_corpus", "val": "val_corpus", "test": "test_corpus"}
_ENGLISH = Column("transcription-engchi-polish.csv", "english")
_CHINESE = Column("transcription_merge.csv", "chinese")
_IEMOCAP_LABELS = Column("label_4way.npz", "emo", "whole_corpus")

KNOWN_DATASETS: dict[str, KnownDataset] = {
    "mercaptionplus": _mer2025(train=_described("mercaptionplus")),
    "ovmerd": _mer2025(train=_described("ovmerd")),
    "mer2025ov": _mer2025(
        test=Split(Column("track2_test.csv", "openset")),
        candidates=Split(names=Column("track_all_candidates.csv", "name")),
    ),
    "mer2023": _six_classes("mer2023-dataset-process", _ENGLISH, "MER2023", 411),
    "mer2024": _six_classes("mer2024-dataset-process", _CHINESE, "MER2024", 1169),
    "meld": KnownDataset(
        "meld-process",
        _ENGLISH,
        _corpora("label.npz", "emo", **_TRAIN_VAL_TEST),
        classes=("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"),
        numbered=True,
        video="subvideo",
        audio="subaudio",
        benchmark="MELD",
        test_clips=2610,
    ),
    "iemocap": KnownDataset(
        "iemocap-process",
        _ENGLISH,
        splits={  # Ses05F_impro01_F000: the fifth of five sessions is the test
            "train": Split(_IEMOCAP_LABELS, only=".{4}[^5].*"),
            "test": Split(_IEMOCAP_LABELS, only=".{4}5.*"),
        },
        classes=("happy", "sad", "neutral", "anger"),
        numbered=True,
        video="subvideo-tgt",
        audio="subaudio",
        also=("iemocapfour",),
        benchmark="IEMOCAP",
        test_clips=1241,
    ),
    "cmumosi": _valences("cmumosi-process", 3.0, "MOSI", 686, "cmu-mosi", video="subvideo", audio="subaudio"),
    "cmumosei": _valences("cmumosei-process", 3.0, "MOSEI", 4659, "cmu-mosei", video="subvideo_new", audio="subaudio"),
    "sims": _valences("sims-process", 1.0, "SIMS", 457, "ch-sims"),
    "simsv2": _valences("simsv2-process", 1.0, "SIMSv2", 1034, "ch-sims v2", video="video_new"),
    "ovmerdplus": KnownDataset(
        "ovmerdplus-process",
        Column("subtitle_eng.csv", "sentence"),
        {"test": Split(Column("ovlabel.csv", "openset"))},
        also=("ovmerd+",),
        benchmark="OV-MERD+",
        test_clips=532,
    ),
}
"""Name in YAML files and of the feature folder -> data set, those of MER-UniBench in the order of its tables."""

_BY_NAME = {other: name for name, known in KNOWN_DATASETS.items() for other in (name, *known.also)}


def dataset_name(name: str) -> str:
    """Return the name of a data set's feature folder: known ones in lower case, IEMOCAPFour as iemocap."""
    return _BY_NAME.get(name.lower(), name)


def known_dataset(name: str) -> KnownDataset | None:
    """Return what is known of a data set, None for one of the user's own."""
    return KNOWN_DATASETS.get(dataset_name(name))


def choices(name: str, config: DatasetConfig) -> Choices:
    """Return what a data set's answers are chosen from: as its section says, or else as is known."""
    known = known_dataset(name)
    return Choices(
        tuple(config.candidate_labels or (known.classes if known else ())),
        config.valence_range or (known.valence_range if known else None),
    )


def dataset_folder(known: KnownDataset, config: DatasetConfig) -> Path:
    """Return the folder of a known data set: that of the files of labels that its section names, or below data_root."""
    return Path(config.ann_paths[0]).parent if config.ann_paths else Path(config.data_root) / known.folder


def media_roots(name: str, config: DatasetConfig) -> MediaRoots:
    """Return where the raw clips of a data set are: as its section says, or else where its publishers put them.

    Sound and face crops are taken from the published folders only where these are there.
    """
    video, audio, face = (
        Path(root) if root else None for root in (config.video_root, config.audio_root, config.face_root)
    )
    if known := known_dataset(name):
        base = dataset_folder(known, config)
        sound, crops = base / known.audio, base / known.faces
        video = video or base / known.video
        audio = audio or (sound if sound.is_dir() else None)
        face = face or (crops if crops.is_dir() else None)
    return MediaRoots(video, audio, face)
