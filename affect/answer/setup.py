"""What an inference run answers with and about: checkpoints, their configuration and model, its data sets."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from affect.core.device import model_precision, pick_device
from affect.data.config import Config, ConfigError, DatasetConfig, FeatureConfig, InferenceConfig, read_config
from affect.data.known_datasets import KNOWN_DATASETS, dataset_name, known_dataset
from affect.engine.checkpoint import epoch_of, find_checkpoint, list_checkpoints
from affect.models.affectgpt import AffectGPT, build_affectgpt
from affect.models.saved import has_weights, load_weights

logger = logging.getLogger(__name__)

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


def find_checkpoints(root: str | Path | None, inference: InferenceConfig) -> list[Path]:
    """Return the checkpoints that are to answer, oldest first: one, or those of `test_epochs`.

    root: where they are, by default `ckpt_root`. A checkpoint that it names itself, or `test_epoch`, counts before
    `test_epochs`. Raises ConfigError for no root and for epochs that are none, ValueError where no such one is there.
    """
    root = root or inference.ckpt_root
    if root is None:
        raise ConfigError("inference.ckpt_root: expected the folder of a run, found nothing; or give --ckpt")
    last = find_checkpoint(root, inference.ckpt_name, inference.test_epoch)
    if inference.test_epochs is None or inference.test_epoch is not None or last == Path(root):
        return [last]
    match = _MANY.fullmatch(inference.test_epochs)
    if not match:
        raise ConfigError(f"inference.test_epochs: expected first-last, e.g. 10-30, found {inference.test_epochs!r}")
    first, final = int(match[1]), int(match[2])
    saved = list_checkpoints(last.parent, whole_epochs=True)
    epochs = {checkpoint: epoch_of(checkpoint) for checkpoint in saved if has_weights(checkpoint)}
    for checkpoint in [path for path in saved if path not in epochs]:
        logger.warning("%s: left out, for it has lost files of its weights", checkpoint)
    wanted = range(first, final + 1)
    chosen = [path for path, epoch in epochs.items() if epoch in wanted and epoch % inference.skip_epoch == 0]
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
    here = {**trained.datasets, **asked.datasets, **asked.evaluation_datasets_cfg}
    if name is not None and name not in here and known_dataset(name) is None:
        raise ValueError(
            f"--dataset {name}: expected one of {', '.join(here)}, or a known data set ({', '.join(KNOWN_DATASETS)})"
        )
    chosen = [name] if name else list(asked.evaluation_datasets_cfg or asked.datasets or trained.datasets)
    return {each: asked.inference.override(_section(each, asked, trained)) for each in chosen}


def _section(name: str, asked: Config, trained: Config) -> DatasetConfig:
    section = trained.datasets.get(name) or _like_trained(trained)
    for given in (asked.datasets.get(name), asked.evaluation_datasets_cfg.get(name)):
        if given:
            section = section.over({key: getattr(given, key) for key in given.model_fields_set})
    return section


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


def inference_device(inference: InferenceConfig) -> torch.device:
    """Return the configured device; `gpu` is the CPU on a machine that has none, for users' files always name one.

    With backend vllm it is the CPU, since vLLM takes the GPU. Raises ValueError for a GPU that does not exist.
    """
    if inference.backend == "vllm":
        return torch.device("cpu")
    if inference.gpu is None or inference.device != "auto":
        return pick_device(inference.device, "inference.device")
    if not torch.cuda.is_available():
        logger.info("inference.gpu: %d, but this machine has no GPU: answering on the CPU", inference.gpu)
        return torch.device("cpu")
    return pick_device(f"cuda:{inference.gpu}", "inference.gpu")


def check_layout(config: Config, checkpoint: Path, section: DatasetConfig) -> None:
    """Raise ValueError where a checkpoint was never trained on a stream of the section's layout; warn of new text."""
    trained = [each.layout for each in config.datasets.values()]
    known = {stream for each in trained for stream in each.branches}
    unknown = [stream for stream in section.layout.branches if stream not in known]
    if unknown or (section.layout.fused and not any(each.fused for each in trained)):
        names = ", ".join(map(_layout_name, config.datasets.values()))
        raise ValueError(
            f"{checkpoint}: expected a layout like those it was trained on ({names}), found {_layout_name(section)}"
        )
    if section.captioned and not any(each.captioned for each in config.datasets.values()):
        logger.warning("%s was never shown action units as text (use_nonverbal_text) in its training", checkpoint)


def _layout_name(section: DatasetConfig) -> str:
    return f"{section.face_or_frame}{' with use_nonverbal_text' if section.captioned else ''}"


def load_model(config: Config, checkpoint: Path) -> AffectGPT:
    """Return the model of a checkpoint on its device, in bfloat16 where a GPU can.

    config: what the checkpoint was trained with, and the wanted `inference` section. Raises ValueError when the
    checkpoint does not fit, the device does not exist, or 4 bits are asked for where they cannot be.
    """
    device = inference_device(config.inference)
    if config.model.load_in_4bit and device.type != "cuda":
        raise ValueError(
            f"model.load_in_4bit: expected answers by backend hf on a GPU, found backend {config.inference.backend} on "
            f"{device}; set it to False"
        )
    if device.index is not None:
        torch.cuda.set_device(device)  # where weights in 4 bits are loaded to
    on_gpu = device.type == "cuda" or (config.inference.backend == "vllm" and torch.cuda.is_available())
    dtype = model_precision("cuda" if on_gpu else "cpu")
    trained = [section.layout for section in config.datasets.values()]
    model = build_affectgpt(config.model, trained, dtype)
    exact = dtype == torch.float32 and not config.model.load_in_4bit
    use_checkpoint(model, checkpoint, merge=exact and config.inference.backend == "hf")
    return model.to(device).eval()


def use_checkpoint(model: AffectGPT, checkpoint: Path, merge: bool | None = None) -> None:
    """Load the weights of a checkpoint into a model that is to answer (raises ValueError when they do not fit).

    merge: add the adapter to the weights that it adapts, which saves a third of the time; by default where the
    checkpoint before was merged. In bfloat16 the sum would be rounded, and answers would differ.
    """
    layer = next(module for module in model.llm.modules() if isinstance(module, LoraLayer))
    merge = layer.merged if merge is None else merge
    if layer.merged:
        model.llm.unmerge_adapter()
    load_weights(checkpoint, model)
    if merge:
        model.llm.merge_adapter()
