"""The AU agent before training or inference: it writes the sentences that AU JSON files lack."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from affect.cli.live import extraction_settings
from affect.core.au_json import find_au_json, read_au_json, sentences
from affect.core.device import pick_device
from affect.core.schema import Modality
from affect.data.config import Config, ConfigError, DatasetConfig, ModelConfig
from affect.data.known_datasets import dataset_name
from affect.data.manifest import read_clips
from affect.features.store import FeatureStore
from extractors.au.agent import build_agent
from extractors.au.templates import describe_clips
from extractors.run.driver import run
from extractors.run.session import Describe, Session

logger = logging.getLogger(__name__)


def fill_sentences(config: Config, split: str) -> int:
    """Let the AU agent describe the clips of a split whose AU JSON has no sentences; return how many there were.

    Clips with stored AU features are left alone, and the others get them where they have AU JSON, unless the section
    says that AU is encoded when asked for or shown as text. What is written stays when the run is stopped, and the
    agent's memory is given back. One process does this while others wait. Raises ConfigError where no AU JSON root is
    named, and what `extractors.au.agent.build_agent` raises; clips that fail are logged.
    """
    count = 0
    for name, section in config.datasets.items() if config.model.use_au_agent else ():
        as_text = section.captioned and not section.nonverbal_json
        if not as_text and Modality.AU not in section.layout.needed:
            continue
        names = [clip.name for clip in read_clips(name, section, split)]
        stored = not as_text and Modality.AU not in section.live(config.model.skip_encoders)
        if stored:
            store = FeatureStore(Path(section.preextracted_root), dataset_name(name))
            names = store.missing(section.spec(Modality.AU, config.model.preextracted_au_dim), names)
        if names and not section.mer_factory_output:
            raise ConfigError(
                f"model.use_au_agent: {len(names)} clips of data set {name} have no AU features: expected "
                f"datasets.{name}.mer_factory_output, the root of the AU JSON files to describe, found nothing; set it"
            )
        described = {clip: _is_described(section.mer_factory_output, dataset_name(name), clip) for clip in names}
        lacking = [clip for clip, is_so in described.items() if is_so is False]
        todo = [clip for clip, is_so in described.items() if is_so is not None] if stored else lacking
        if todo:
            stages = ("au_text", "features") if stored else ("au_text",)
            _fill(name, section, config.model, todo, stages, len(lacking))
        count += len(lacking)
    return count


def sentence_maker(model: ModelConfig) -> Describe:
    """Return what describes one clip's frames: the templates, or the AU agent where the configuration wants it.

    The agent is loaded when there is something to describe.
    """
    if not model.use_au_agent:
        return describe_clips
    device = str(pick_device(model.au_agent_device, "model.au_agent_device"))
    base, adapter = model.au_agent_base_model, model.au_agent_lora_weights
    return lambda clips: build_agent(base, adapter, device).describe_clips(clips)


def _is_described(root: str, dataset: str, name: str) -> bool | None:
    """Whether a clip has all sentences that it can have; None without AU JSON that can be read."""
    try:
        analysis = read_au_json(find_au_json(root, dataset, name))
    except (FileNotFoundError, ValueError):  # told when the clip is read
        return None
    return analysis.faceless or bool(sentences(analysis))


def _fill(
    name: str, section: DatasetConfig, model: ModelConfig, names: Sequence[str], stages: tuple[str, ...], lacking: int
) -> None:
    """Run the stages that follow AU JSON on some clips; the language model is loaded if any of them lacks sentences."""
    device = str(pick_device(model.au_agent_device, "model.au_agent_device"))
    if lacking:
        logger.info("data set %s: %s describes %d clips on %s", name, model.au_agent_base_model, lacking, device)
    settings = extraction_settings(
        dataset_name(name),
        section,
        streams=(Modality.AU,),
        stages=stages,
        allow_mismatch=True,  # the agent fills what another maker left out
        au_maker=model.au_agent_base_model,
        au_adapter=model.au_agent_lora_weights,
        device=device,
    )
    session = Session(settings, "au_agent", describe=None if lacking else describe_clips)
    report = run(session, names)
    del session
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    if report.stopped:
        raise OSError(report.stopped)
