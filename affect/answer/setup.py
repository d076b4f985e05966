"""What an inference run answers with and about: its checkpoints, their configuration, its data sets."""

from __future__ import annotations

import re
from pathlib import Path

from affect.data.config import Config, ConfigError, DatasetConfig, FeatureConfig, InferenceConfig, read_config
from affect.data.known_datasets import KNOWN_DATASETS, dataset_name, known_dataset
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state

FREE_KEYS = {
    "au_agent_base_model",
    "au_agent_device",
    "au_agent_lora_weights",
    "ckpt",
    "llama_model",
    "load_in_4bit",
    "lora_dropout",
    "max_length",
    "prompt_file",
    "skip_encoders",
    "use_au_agent",
}
"""Keys of the model section that may differ between training and answering; beside them all frozen_* keys."""
_RAW = ("video_root", "audio_root", "face_root")
_MANY = re.compile(r"(\d+)-(\d+)")


def ckpt_root(config: Config, cfg_path: str) -> str:
    """Return where the checkpoint is (raises ConfigError when the file does not say)."""
    if config.inference.ckpt_root is None:
        raise ConfigError(
            f"{cfg_path}: inference.ckpt_root: expected the folder of a run, found nothing; or give --ckpt"
        )
    return config.inference.ckpt_root


def find_checkpoints(root: str | Path, inference: InferenceConfig) -> list[Path]:
    """Return the checkpoints that are to answer, oldest first: one, or those of `test_epochs`.

    A checkpoint that `root` itself names, or `test_epoch`, counts before `test_epochs`. Raises ConfigError for
    epochs that are none, ValueError where there is no such checkpoint.
    """
    last = find_checkpoint(root, inference.ckpt_name, inference.test_epoch)
    if inference.test_epochs is None or inference.test_epoch is not None or last == Path(root):
        return [last]
    match = _MANY.fullmatch(inference.test_epochs)
    if not match:
        raise ConfigError(f"inference.test_epochs: expected first-last, e.g. 10-30, found {inference.test_epochs!r}")
    first, final = int(match[1]), int(match[2])
    saved = list_checkpoints(last.parent, whole_epochs=True)
    epochs = {checkpoint: read_state(checkpoint).epoch for checkpoint in saved}
    chosen = [
        checkpoint
        for checkpoint, epoch in epochs.items()
        if first <= epoch <= final and epoch % inference.skip_epoch == 0
    ]
    if not chosen:
        every = f" that {inference.skip_epoch} divides" if inference.skip_epoch > 1 else ""
        raise ValueError(
            f"{last.parent}: expected checkpoints of epochs {inference.test_epochs}{every}, found epochs "
            f"{', '.join(map(str, epochs.values()))}; change inference.test_epochs or skip_epoch"
        )
    return chosen


def trained_config(asked: Config, checkpoint: Path, cfg_path: str) -> Config:
    """Return the checkpoint's own configuration with the asked inference section and language model.

    Raises ConfigError when the file's model section, where it says something, is not the checkpoint's.
    """
    trained = read_config(checkpoint)
    given = {key: getattr(asked.model, key) for key in asked.model.model_fields_set}
    faults = [
        f"{cfg_path}: model.{key}: the checkpoint {checkpoint} has {getattr(trained.model, key)!r}, found {value!r}"
        for key, value in given.items()
        if key not in FREE_KEYS and not key.startswith("frozen_") and value != getattr(trained.model, key)
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    model = trained.model.model_copy(update={key: value for key, value in given.items() if key in FREE_KEYS})
    return trained.model_copy(update={"model": model, "inference": asked.inference})


def answered_datasets(asked: Config, trained: Config, name: str | None = None) -> dict[str, DatasetConfig]:
    """Return the data sets to answer: that of a name, or else all of the asked file, or of the checkpoint's.

    What a section does not say, the checkpoint's section of that data set says, or of its first data set where the
    checkpoint has none of that name (that one's clips are others, though). The inference section counts before both.
    Raises ValueError for a name that is no data set of either and not known.
    """
    here = {**trained.datasets, **asked.datasets}
    if name is not None and name not in here and known_dataset(name) is None:
        raise ValueError(
            f"--dataset {name}: expected one of {', '.join(here)}, or a known data set ({', '.join(KNOWN_DATASETS)})"
        )
    chosen = [name] if name else list(asked.datasets or trained.datasets)
    return {each: asked.inference.override(_section(each, asked, trained)) for each in chosen}


def _section(name: str, asked: Config, trained: Config) -> DatasetConfig:
    base = trained.datasets.get(name) or _like_trained(trained)
    given = asked.datasets.get(name)
    if given is None:
        return base
    return base.model_copy(update={key: getattr(given, key) for key in given.model_fields_set})


def _like_trained(trained: Config) -> DatasetConfig:
    """Return a section for another data set, with the layout and the features that the checkpoint was trained on."""
    other, first = next(iter(trained.datasets.items()))
    section = DatasetConfig(
        **{key: getattr(first, key) for key in ("face_or_frame", *FeatureConfig.model_fields) if key not in _RAW}
    )
    root = Path(section.preextracted_root)
    if root.name.lower() == dataset_name(other).lower():  # users name the common root, or a data set's own folder
        section.preextracted_root = str(root.parent)
    return section
