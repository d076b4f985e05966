"""Training AffectGPT: the loss of answers about clips, weighted by tokens; python train.py --cfg-path x.yaml

A checkpoint holds fusion.safetensors and adapter/ (affect/models/saved.py) beside the engine's own files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from affect.core.schema import AU_VALUES, Batch
from affect.data.collate import Collator
from affect.data.config import Config, RunConfig
from affect.data.dataset import ClipDataset, Features, TrainingSamples, open_datasets, query_tokens
from affect.data.lengths import text_lengths
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw, StepBatches
from affect.engine.checkpoint import find_checkpoint
from affect.engine.launch import PRECISION
from affect.engine.sharding import whole
from affect.engine.task import Size, Weights
from affect.features.store import FeatureStore
from affect.models.affectgpt import AffectGPT, build_affectgpt
from affect.models.llm import decoder
from affect.models.saved import load_weights, save_weights
from affect.tasks.language import LanguageTask, share_out

logger = logging.getLogger(__name__)

STATISTICS_CLIPS = 2000
"""Clips that feature means and deviations are taken from, at most."""
FillSentences = Callable[[Config, str], Any]
"""(configuration, split) -> AU sentences written that AU JSON files lack."""
OpenStores = Callable[[Config, str], tuple[Mapping[str, Features], Config]]
"""(configuration, device) -> data set -> where its features are made on the fly; and the configuration for it."""


@dataclass
class AffectGPTTask(LanguageTask):
    """Answers about clips."""

    config: Config
    model: AffectGPT
    samples: TrainingSamples
    held_out: TrainingSamples | None = None
    _split: tuple[Iterable[Batch], int] | None = dataclasses.field(default=None, init=False)

    noun = "clips"

    @property
    def run(self) -> RunConfig:
        """Settings of the run."""
        return self.config.run

    def steps(self, processes: int) -> tuple[int, int]:
        """Return the configured numbers."""
        return self.run.iters_per_epoch, self.run.total_steps

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Generator[Batch]:
        """Return this process's batches from step `first` to before `last`."""
        lengths = text_lengths(self.samples) if self.run.bucket_by_length else None
        sampler = StepBatches(size=len(self.samples), lengths=lengths, **self.places(first, last, accelerator))
        said = False
        for batch in self.loader(self.samples, sampler, self._collator, accelerator):
            if any(batch.left_out) and not said:
                said = True
                words, name = max(zip(batch.left_out, batch.names, strict=True))
                logger.warning(
                    "clip %r: the first %d words of its subtitle are left out, and so for other long ones: a text has "
                    "%d tokens at most",
                    *(name, words, min(self._collator.context, self._collator.max_length)),
                )
            yield batch

    @cached_property
    def _collator(self) -> Collator:
        return self.model.collator()

    def size(self, batch: Batch) -> Size:
        """Return how much a batch holds; what weighs is the answers' tokens."""
        cells = batch.input_ids.numel()
        return Size(len(batch.answers), len(batch.names), cells - batch.padding, cells, batch.padding)

    def held_out_batches(self, accelerator: Accelerator) -> tuple[Iterable[Batch], int]:
        """Return clips with every stream, each asked the question of cycle 0, those of like length together."""
        if self.held_out is None:
            return (), 0
        if self._split is None:
            kept = [
                dataclasses.replace(dataset, config=dataset.config.model_copy(update={"modality_dropout": 0.0}))
                for dataset in self.held_out.datasets
            ]
            order = np.argsort(text_lengths(self.held_out)(0), kind="stable")
            draws, own = share_out([Draw(int(clip), 0) for clip in order], self.run.batch_size_train, accelerator)
            samples = dataclasses.replace(self.held_out, datasets=kept)
            self._split = self.loader(samples, draws, self._collator, accelerator), own
        return self._split

    def weights(self) -> Weights:
        """Return the weights of everything but the language model, and the LoRA weights in it."""
        adapter = {name: value for name, value in self.model.llm.state_dict().items() if "lora_" in name}
        parts = {"fusion": self.model.fusion_state(), "adapter": adapter}
        return {stem: {name: whole(value) for name, value in part.items()} for stem, part in parts.items()}

    def save(self, folder: Path, weights: Weights) -> None:
        """Write fusion.safetensors and adapter/."""
        save_weights(folder, self.model, **weights)

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint."""
        load_weights(checkpoint, self.model)


def open_task(
    config: Config,
    fill_sentences: FillSentences,
    open_stores: OpenStores,
    accelerator: Accelerator,
    folder: Path,
    checkpoint: Path | None,
) -> AffectGPTTask:
    """Return the task with data and model opened; raises ValueError for what cannot be used."""
    if config.model.load_in_4bit and accelerator.device.type != "cuda":
        raise ValueError(f"model.load_in_4bit needs a GPU, found run.device {accelerator.device}; set it to False")
    if any(each.au_encoder == AU_VALUES for each in config.datasets.values()) and not config.model.standardize_features:
        raise ValueError(f"{AU_VALUES} are intensities as they were measured; set model.standardize_features: True")
    splits = ["train", *([config.run.val_split] if config.run.val_split else [])]
    if config.model.use_au_agent and accelerator.is_main_process:
        for split in splits:
            fill_sentences(config, split)
    accelerator.wait_for_everyone()
    stores: Mapping[str, Features] = {}
    if any(section.live(skip_encoders=False) for section in config.datasets.values()):
        stores, config = open_stores(config, str(accelerator.device))
    samples, *held_out = [open_samples(config, split, stores, accelerator.is_main_process) for split in splits]
    accelerator.wait_for_everyone()
    for part in held_out:
        warn_of_common_clips(samples, part)
    set_seed(config.run.seed)
    layouts = [dataset.config.layout for dataset in samples.datasets]
    dtype = PRECISION[accelerator.mixed_precision]
    model = build_affectgpt(config.model, layouts, dtype, config.run.gradient_checkpointing)
    samples.check_prompts(model.collator())
    if config.model.ckpt:
        load_weights(find_checkpoint(config.model.ckpt), model)
    elif config.model.standardize_features and not checkpoint:  # its statistics come with the weights
        fit_feature_norms(model, samples.datasets, config.run.seed)
    if config.run.compile:
        decoder(model.llm).compile(dynamic=True)
    return AffectGPTTask(config, model, samples, *held_out)


def open_samples(config: Config, split: str, stores: Mapping[str, Features], check: bool) -> TrainingSamples:
    """Return the samples of a split, their labels checked, and with `check` the arrays of their features."""
    datasets = open_datasets(config, split, stores)
    logger.info("%s: %s", split, ", ".join(f"{len(dataset)} clips of {dataset.name}" for dataset in datasets))
    for dataset in datasets:
        if check and config.run.check_features and isinstance(dataset.store, FeatureStore):  # others would encode all
            dataset.check_arrays()
    prompts, tokens = load_prompts(config.model.prompt_file), query_tokens(config.model)
    samples = TrainingSamples(datasets, prompts, tokens, config.run.seed)
    samples.check_answers()
    return samples


def warn_of_common_clips(samples: TrainingSamples, held_out: TrainingSamples) -> None:
    """Say so where the validation split has clips that are trained on: its loss then tells little."""
    trained, held = ({(d.name, clip.name) for d in part.datasets for clip in d.clips} for part in (samples, held_out))
    if common := trained & held:
        logger.warning(
            "run.val_split: %d of its %d clips are trained on, too, e.g. %s; give the table a split column that "
            "parts them",
            len(common),
            len(held),
            min(common)[1],
        )


def fit_feature_norms(model: AffectGPT, datasets: list[ClipDataset], seed: int) -> None:
    """Give the model the mean and deviation of each stream's rows over (a sample of) the training clips."""
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    if len(places) > STATISTICS_CLIPS:
        chosen = np.random.default_rng(seed).choice(len(places), STATISTICS_CLIPS, replace=False)
        places = [places[i] for i in sorted(chosen)]
    rows: dict[str, list[np.ndarray]] = {}
    for dataset, index in places:
        for stream, array in dataset.features(index).items():
            rows.setdefault(stream, []).append(array)
    for stream, norm in model.norms.items():
        together = np.concatenate(rows[stream]) if stream in rows else np.empty((0, 0))
        if len(together):
            norm.fit(torch.from_numpy(together))
