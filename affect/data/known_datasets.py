"""The data sets that users of this kind of system have, each a small table over the reader in `affect.data.manifest`.

To add one, add an entry to `KNOWN_DATASETS`; a data set of one's own needs none, its table of clips says everything
(docs/datasets.md). Paths are those of the published folders, below `data_root`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from affect.data.config import DatasetConfig, FeatureConfig


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


_TRAIN_VAL_TEST = {"train": "train_corpus", "val": "val_corpus", "test": "test_corpus"}
_MER_CLASSES = ("neutral", "angry", "happy", "sad", "worried", "surprise")
_MER2025_SUBTITLES = Column("subtitle_chieng.csv", "english")
_ENGLISH = Column("transcription-engchi-polish.csv", "english")

KNOWN_DATASETS: dict[str, KnownDataset] = {
    "mercaptionplus": KnownDataset(
        folder="mer2025-dataset",
        subtitles=_MER2025_SUBTITLES,
        splits={
            "train": Split(
                labels=Column("track2_train_mercaptionplus.csv", "openset"),
                descriptions=Column("track3_train_mercaptionplus.csv", "reason"),
            )
        },
    ),
    "ovmerd": KnownDataset(
        folder="mer2025-dataset",
        subtitles=_MER2025_SUBTITLES,
        splits={
            "train": Split(
                labels=Column("track2_train_ovmerd.csv", "openset"),
                descriptions=Column("track3_train_ovmerd.csv", "reason"),
            )
        },
    ),
    "mer2025ov": KnownDataset(
        folder="mer2025-dataset",
        subtitles=_MER2025_SUBTITLES,
        splits={
            "test": Split(labels=Column("track2_test.csv", "openset")),
            "candidates": Split(names=Column("track_all_candidates.csv", "name")),
        },
    ),
    "mer2023": KnownDataset(
        folder="mer2023-dataset-process",
        subtitles=_ENGLISH,
        splits=_corpora("label-6way.npz", "emo", train="train_corpus", test="test1_corpus"),
        classes=_MER_CLASSES,
    ),
    "mer2024": KnownDataset(
        folder="mer2024-dataset-process",
        subtitles=Column("transcription_merge.csv", "chinese"),
        splits=_corpora("label-6way.npz", "emo", train="train_corpus", test="test1_corpus"),
        classes=_MER_CLASSES,
    ),
    "meld": KnownDataset(
        folder="meld-process",
        subtitles=_ENGLISH,
        splits=_corpora("label.npz", "emo", **_TRAIN_VAL_TEST),
        classes=("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"),
        numbered=True,
        video="subvideo",
        audio="subaudio",
    ),
    "iemocap": KnownDataset(
        folder="iemocap-process",
        subtitles=_ENGLISH,
        splits={  # Ses05F_impro01_F000: the fifth of five sessions is the test
            "train": Split(labels=Column("label_4way.npz", "emo", "whole_corpus"), only=".{4}[^5].*"),
            "test": Split(labels=Column("label_4way.npz", "emo", "whole_corpus"), only=".{4}5.*"),
        },
        classes=("happy", "sad", "neutral", "anger"),
        numbered=True,
        video="subvideo-tgt",
        audio="subaudio",
    ),
    "cmumosi": KnownDataset(
        folder="cmumosi-process",
        subtitles=_ENGLISH,
        splits=_corpora("label.npz", "val", **_TRAIN_VAL_TEST),
        valence_range=(-3.0, 3.0),
        video="subvideo",
        audio="subaudio",
    ),
    "cmumosei": KnownDataset(
        folder="cmumosei-process",
        subtitles=_ENGLISH,
        splits=_corpora("label.npz", "val", **_TRAIN_VAL_TEST),
        valence_range=(-3.0, 3.0),
        video="subvideo_new",
        audio="subaudio",
    ),
    "sims": KnownDataset(
        folder="sims-process",
        subtitles=_ENGLISH,
        splits=_corpora("label.npz", "val", **_TRAIN_VAL_TEST),
        valence_range=(-1.0, 1.0),
    ),
    "simsv2": KnownDataset(
        folder="simsv2-process",
        subtitles=_ENGLISH,
        splits=_corpora("label.npz", "val", **_TRAIN_VAL_TEST),
        valence_range=(-1.0, 1.0),
        video="video_new",
    ),
    "ovmerdplus": KnownDataset(
        folder="ovmerdplus-process",
        subtitles=Column("subtitle_eng.csv", "sentence"),
        splits={"test": Split(labels=Column("ovlabel.csv", "openset"))},
    ),
}
"""Name in YAML files and of the feature folder -> data set."""

ALSO_KNOWN_AS = {"iemocapfour": "iemocap"}


def dataset_name(name: str) -> str:
    """Return the name of a data set's feature folder: known ones in lower case, IEMOCAPFour as iemocap."""
    lower = ALSO_KNOWN_AS.get(name.lower(), name.lower())
    return lower if lower in KNOWN_DATASETS else name


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


def media_roots(name: str, config: FeatureConfig) -> MediaRoots:
    """Return where the raw clips of a data set are: as its section says, or else where its publishers put them.

    Sound and face crops are taken from the published folders only where these are there.
    """
    given = (config.video_root, config.audio_root, config.face_root)
    video, audio, face = (Path(root) if root else None for root in given)
    if known := known_dataset(name):
        base = Path(config.data_root) / known.folder
        video = video or base / known.video
        audio = audio or _if_there(base / known.audio)
        face = face or _if_there(base / known.faces)
    return MediaRoots(video, audio, face)


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
