"""Where the features of a configuration's data sets come from: the store, or encoders when a clip is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from affect.core.schema import Modality
from affect.data.config import Config, ConfigError, DatasetConfig, FeatureConfig, ModelConfig
from affect.data.known_datasets import dataset_name, media_roots
from affect.features.provenance import said
from affect.features.store import FeatureStore
from extractors.run.live import LiveFeatures
from extractors.run.session import Settings

logger = logging.getLogger(__name__)

_NOTICED = {
    "faces_from": "crops and colours of the two differ",
    "frame_geometry": "the encoder sees other parts of the frames",
    "weights": "another encoder of the same name",
    "precision": "numbers differ from the third digit on",
    "device": "numbers may differ in their last digits",
}
"""What a sidecar says that the numbers depend on -> what it does to an answer that it is another."""


def extraction_settings(dataset: str, section: FeatureConfig, **more: Any) -> Settings:
    """Return what a section says of features as the settings of their extraction; `more` counts before it."""
    own = {
        "dataset": dataset,
        "save_root": Path(section.preextracted_root),
        "au_root": Path(section.mer_factory_output) if section.mer_factory_output else None,
        "allow_mismatch": section.allow_mismatch,
        "visual_encoder": section.visual_encoder,
        "acoustic_encoder": section.acoustic_encoder,
        "au_encoder": section.au_encoder,
        "sampling": section.frame_sampling,
        "precision": section.encoder_precision,
        "frame_geometry": section.frame_geometry,
        "frame_count": section.frame_n_frms,
        "clips_per_video": section.clips_per_video,
    }
    return Settings(**own | more)


def live_streams(name: str, section: DatasetConfig, model: ModelConfig) -> list[Modality]:
    """Return the streams of a data set that are encoded when they are asked for.

    Raises ConfigError where the sentences of AU JSON files are, and nothing says where these are.
    """
    streams = section.live(model.skip_encoders)
    if Modality.AU in streams and not section.mer_factory_output:
        raise ConfigError(
            f"data set {name}: use_au_clip_realtime (or use_preextracted_au: False) encodes the sentences of AU JSON "
            "files: expected mer_factory_output, their root, found nothing; set it"
        )
    if streams != section.live(skip_encoders=False):
        logger.info(
            "data set %s: model.skip_encoders is True, so its features are read from %s, although "
            "use_preextracted_features is False",
            name,
            section.preextracted_root,
        )
    return streams


def open_store(
    name: str, section: DatasetConfig, model: ModelConfig, device: str = "cpu"
) -> FeatureStore | LiveFeatures:
    """Return where the features of a data set come from: its store, with encoders before it where the section says so.

    Raises ConfigError where raw clips are not named or an encoder is not as wide as the model expects, and what
    `extractors.encoders.build_encoder` raises.
    """
    streams = live_streams(name, section, model)
    if not streams:
        return FeatureStore(Path(section.preextracted_root), dataset_name(name))
    roots = _roots(name, section, streams)
    more = {"streams": tuple(streams), "stages": ("features",), "device": device}
    features = LiveFeatures(extraction_settings(dataset_name(name), section, **roots, **more))
    for stream, spec in features.specs.items():
        if spec.dim != model.feature_dim(stream):
            raise ConfigError(
                f"data set {name}: encoder {spec.encoder} gives {spec.dim} numbers a row, but the model expects "
                f"{model.feature_dim(stream)} of {stream}; name another encoder, or correct model.preextracted_*_dim"
            )
    if Modality.FRAME in streams and section.frame_sampling == "emotion_peak" and not section.mer_factory_output:
        logger.info("data set %s: frame_sampling emotion_peak without mer_factory_output: frames are uniform", name)
    logger.info("data set %s: %s encoded when a clip is asked for, on %s", name, ", ".join(streams), device)
    return features


def live_stores(config: Config, device: str) -> dict[str, LiveFeatures]:
    """Return data set -> its features for training on a device, for the data sets that are encoded on the fly."""
    stores = {name: open_store(name, section, config.model, device) for name, section in config.datasets.items()}
    return {name: store for name, store in stores.items() if isinstance(store, LiveFeatures)}


def loader_settings(config: Config, stores: Iterable[Any], device: str) -> Config:
    """Return the configuration to read samples with: without loader processes where clips are encoded on a GPU.

    stores: where features come from; a forked process cannot use the GPU of its parent.
    """
    if device == "cpu" or not config.run.num_workers or not any(isinstance(store, LiveFeatures) for store in stores):
        return config
    logger.info("run.num_workers counts as 0: clips that are encoded on a GPU are read in the process that has it")
    return config.model_copy(update={"run": config.run.model_copy(update={"num_workers": 0})})


def like_training(trained: Config, section: DatasetConfig) -> DatasetConfig:
    """Return a section whose frames, where it does not say, are squashed or cropped as those of a model's training.

    trained: the model's configuration, whose features may be on this machine.
    """
    found = (said(sidecar, "frame_geometry") for _, sidecar in _trained_on(trained, Modality.FRAME))
    return section.model_copy(update={"frame_geometry": section.frame_geometry or next(found, None)})


def warn_of_other_features(trained: Config, found: Mapping[Modality, Mapping[str, Any] | None]) -> None:
    """Say so where features, stream -> sidecar, are made otherwise than those that a model was trained on.

    trained: as in `like_training`.
    """
    for stream, sidecar in found.items():
        for name, expected in _trained_on(trained, stream):
            for key, consequence in _NOTICED.items():
                here, there = (said(each, key) for each in (sidecar or {}, expected))
                if here != there and None not in (here, there):
                    told = f"{stream}: {key} is {here!r} here, but {there!r} in the features of {name} that the model"
                    logger.warning("%s was trained on: %s", told, consequence)


def _trained_on(trained: Config, stream: Modality) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield data set and sidecar of the features of a stream that a model was trained on, those that are here."""
    for name, section in trained.datasets.items():
        if stream in section.layout.needed:
            store = FeatureStore(Path(section.preextracted_root), dataset_name(name))
            if sidecar := store.provenance(section.spec(stream, 1)):
                yield name, sidecar


def _roots(name: str, section: DatasetConfig, streams: Sequence[Modality]) -> dict[str, Path | None]:
    """Return where the raw clips are (raises ConfigError where the section does not say)."""
    known = media_roots(name, section)
    roots = {"video_root": known.video, "audio_root": known.audio, "face_root": known.face}
    for stream, keys in (
        (Modality.FRAME, ("video_root",)),
        (Modality.FACE, ("face_root", "video_root")),
        (Modality.AUDIO, ("audio_root", "video_root")),
    ):
        given = [roots[key] for key in keys if roots[key]]
        if stream in streams and not any(root.is_dir() for root in given):
            raise ConfigError(
                f"data set {name}: expected {' or '.join(keys)}, a folder to encode {stream} from, found "
                f"{' or '.join(map(str, given)) or 'nothing'}; name it, or set use_preextracted_{stream} to True"
            )
    return roots
