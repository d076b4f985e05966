"""Whether AU JSON, sentences and features of a data set are there and agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affect.core.au_json import au_json_path, find_au_json, list_au_json, read_au_json, require_sentences
from affect.core.schema import AU_VALUES, Modality
from affect.data.config import DatasetConfig, ModelConfig
from affect.data.manifest import read_clips
from affect.features.provenance import au_makers, first_difference
from affect.features.store import FeatureError, FeatureStore


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one clip."""

    dataset: str
    clip: str
    check: str
    """au_json, makers, sentences, counts, or the name of a stream."""
    ok: bool
    detail: str = ""


def check_dataset(
    dataset: str, section: DatasetConfig, model: ModelConfig, streams: Sequence[Modality]
) -> Iterator[Finding]:
    """Yield what is found of the given streams of every clip of a data set."""
    store = FeatureStore(Path(section.preextracted_root), dataset)
    au_root = Path(section.mer_factory_output or Path(section.preextracted_root) / "au_json")
    makers = store.provenance(section.spec(Modality.AU, model.preextracted_au_dim)) or {}
    for name in clip_names(dataset, section, store, au_root):
        sentences = None
        if Modality.AU in streams:
            check = "au_json"
            try:
                path = find_au_json(au_root, dataset, name)
                analysis = read_au_json(path)
                yield Finding(dataset, name, check, ok=True)
                made = au_makers(analysis, section.au_encoder)
                other = first_difference(makers, made)
                wrong = f"{other} is {made[other]!r}, but {makers[other]!r} of the clips before it" if other else ""
                yield Finding(dataset, name, "makers", not other, wrong)
                makers = made | makers
                if section.au_encoder != AU_VALUES:
                    check = "sentences"
                    sentences = require_sentences(analysis, path)
                    yield Finding(dataset, name, check, ok=True)
            except (ValueError, OSError) as error:
                yield _fault(dataset, name, check, error)
        for stream in streams:
            try:
                rows = len(store.read(section.spec(stream, model.feature_dim(stream)), name))
                yield Finding(dataset, name, stream, ok=True)
            except FeatureError as error:
                yield _fault(dataset, name, stream, error)
                continue
            if stream == Modality.AU and sentences is not None:
                wrong = f"expected one AU row a sentence, found {rows} and {len(sentences)}"
                agree = len(sentences) == rows
                yield Finding(dataset, name, "counts", agree, "" if agree else wrong)


def clip_names(dataset: str, section: DatasetConfig, store: FeatureStore, au_root: Path) -> list[str]:
    """Return the clips of the table, or without one every clip of which anything is there."""
    if section.csv_path:
        return [clip.name for clip in read_clips(dataset, section)]
    # with the data set's folder between root and clips, or without, or both
    folder = au_json_path(au_root, dataset, "any").parent.parent
    found = {name for name, path in list_au_json(au_root) if path.parent.parent in (folder, au_root)}
    names = store.names() | found
    if not names:
        raise ValueError(f"{store.root} and {au_root}: expected features or AU JSON of {dataset}, found neither")
    return sorted(names)


def _fault(dataset: str, clip: str, check: str, error: Exception) -> Finding:
    return Finding(dataset, clip, check, ok=False, detail=" ".join(str(error).split()))
