"""Training AffectGPT: the loss of answers about clips, weighted by tokens; python train.py --cfg-path x.yaml

A checkpoint holds fusion.safetensors and adapter/ (affect/models/saved.py) beside the engine's own files.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from affect.core.layouts import LAYOUTS
from affect.core.schema import Batch
from affect.data.collate import Collator
from affect.data.config import Config
from affect.data.dataset import ClipDataset, Features, TrainingSamples, open_datasets, query_tokens
from affect.data.lengths import text_lengths
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw, StepBatches
from affect.engine.checkpoint import find_checkpoint
from affect.engine.launch import PRECISION
from affect.engine.metrics import flops_per_token
from affect.engine.sharding import whole
from affect.engine.stop import StopRequest, ignore_sigterm
from affect.engine.task import Size, Watched, Weights
from affect.features.store import FeatureStore
from affect.models.affectgpt import AffectGPT, build_affectgpt
from affect.models.llm import decoder
from affect.models.saved import load_weights, save_weights

logger = logging.getLogger(__name__)

STATISTICS_CLIPS = 2000
"""Clips that feature means and deviations are taken from, at most."""
FillSentences = Callable[[Config, str], Any]
"""(configuration, split) -> AU sentences written that AU JSON files lack."""
OpenStores = Callable[[Config, str], tuple[Mapping[str, Features], Config]]
"""(configuration, device) -> data set -> where its features are made on the fly; and the configuration for it."""


@dataclass
class AffectGPTTask:
    """The task that `affect.engine.task.Task` describes."""

    config: Config
    model: AffectGPT
    samples: TrainingSamples
    held_out: TrainingSamples | None = None
    _split: tuple[DataLoader, int] | None = dataclasses.field(default=None, init=False)

    watched = Watched("val_loss", told="validation loss")
    noun = "clips"
    validates_first = False

    @property
    def run(self) -> Any:
        """Settings of the run."""
        return self.config.run

    def steps_per_epoch(self, processes: int) -> int:
        """Return the configured number."""
        return self.run.iters_per_epoch

    def total_steps(self, processes: int) -> int:
        """Return the steps of all epochs."""
        return self.run.total_steps

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Generator[Batch]:
        """Return this process's batches from step `first` to before `last`."""
        every = self.run.gradient_accumulation_steps
        sampler = StepBatches(
            size=len(self.samples),
            batch_size=self.run.batch_size_train,
            seed=self.run.seed,
            first=first * every,
            last=last * every,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            lengths=text_lengths(self.samples) if self.run.bucket_by_length else None,
        )
        return (batch for batch in self._loader(self.samples, sampler, accelerator))

    def _loader(self, samples: TrainingSamples, sampler: Any, accelerator: Accelerator, **settings: Any) -> DataLoader:
        workers = self.run.num_workers
        return DataLoader(
            samples,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=Collator(self.model.tokenizer, self.config.model.max_length),
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_sigterm,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
        )

    def to_device(self, batch: Batch, device: torch.device, seed: tuple[int, ...]) -> Batch:
        """Return a batch on a device."""
        return batch.to(device)

    def size(self, batch: Batch) -> Size:
        """Return how much a batch holds; what weighs is the answers' tokens."""
        cells = batch.input_ids.numel()
        return Size(len(batch.answers), len(batch.names), cells - batch.padding, cells, batch.padding)

    def names(self, batch: Batch) -> list[str]:
        """Return the clips' names."""
        return batch.names

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy of the answers' tokens."""
        return model(batch), {}

    @cached_property
    def _flops_per_token(self) -> float:
        return flops_per_token(self.model)

    def flops(self, size: Size) -> float:
        """Return about how many operations a step takes."""
        return size.tokens * self._flops_per_token

    @torch.no_grad()
    def validate(self, model: nn.Module, accelerator: Accelerator, stop: StopRequest) -> dict[str, float] | None:
        """Return the loss over the held-out split: no dropout, every stream, each clip's question that of cycle 0."""
        if self.held_out is None:
            return {}
        model.eval()
        self._split = self._split or self._held_out_batches(accelerator)
        batches, own = self._split
        total = count = 0.0
        for number, batch in enumerate(batches):
            tokens = self.size(batch).weight if number < own else 0  # one after them keeps step with other processes
            loss = model(self.to_device(batch, accelerator.device, ()))
            numbers = torch.tensor([0.0, tokens, float(stop.asked)], device=loss.device)
            numbers[0] = loss * tokens
            part, tokens, stopping = accelerator.reduce(numbers, reduction="sum").tolist()
            if stopping:
                return None
            total, count = total + part, count + tokens
        return {"val_loss": total / count}

    def _held_out_batches(self, accelerator: Accelerator) -> tuple[DataLoader, int]:
        """Return this process's part of the held-out split, and how many of its batches count."""
        kept = [
            dataclasses.replace(dataset, config=dataset.config.model_copy(update={"modality_dropout": 0.0}))
            for dataset in self.held_out.datasets
        ]
        order = np.argsort(text_lengths(self.held_out)(0), kind="stable")
        size = self.run.batch_size_train
        batches = [[Draw(int(clip), 0) for clip in order[start : start + size]] for start in range(0, len(order), size)]
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        rounds = math.ceil(len(batches) / accelerator.num_processes)
        samples = dataclasses.replace(self.held_out, datasets=kept)
        return self._loader(samples, mine + batches[:1] * (rounds - len(mine)), accelerator), len(mine)

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

    def begin(self, folder: Path, checkpoint: Path | None) -> None:
        """Checkpoints and curves are all there is."""

    def end_epoch(self, folder: Path, weights: Weights, history: list[dict[str, Any]], best: bool, last: bool) -> None:
        """Checkpoints and curves are all there is."""


def open_task(
    config: Config, accelerator: Accelerator, resumed: bool, fill_sentences: FillSentences, open_stores: OpenStores
) -> AffectGPTTask:
    """Return the task with data and model opened; raises ValueError for what cannot be used.

    resumed: a checkpoint's weights and feature statistics follow.
    """
    if config.model.load_in_4bit and accelerator.device.type != "cuda":
        raise ValueError(f"model.load_in_4bit needs a GPU, found run.device {accelerator.device}; set it to False")
    splits = ["train", *([config.run.val_split] if config.run.val_split else [])]
    if config.model.use_au_agent and accelerator.is_main_process:
        for split in splits:
            fill_sentences(config, split)
    accelerator.wait_for_everyone()
    stores: Mapping[str, Features] = {}
    if not all(d.use_preextracted_features for d in config.datasets.values()):
        stores, config = open_stores(config, str(accelerator.device))
    samples, *held_out = [open_samples(config, split, stores, accelerator.is_main_process) for split in splits]
    accelerator.wait_for_everyone()
    for part in held_out:
        warn_of_common_clips(samples, part)
    set_seed(config.run.seed)
    layouts = [LAYOUTS[dataset.config.face_or_frame] for dataset in samples.datasets]
    dtype = PRECISION[accelerator.mixed_precision]
    model = build_affectgpt(config.model, layouts, dtype, config.run.gradient_checkpointing)
    samples.check_prompts(Collator(model.tokenizer, config.model.max_length))
    if config.model.ckpt:
        load_weights(find_checkpoint(config.model.ckpt), model)
    elif config.model.standardize_features and not resumed:  # its statistics come with the weights
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
