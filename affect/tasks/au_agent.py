"""Training the AU agent: LoRA on a frozen causal language model; python train.py --cfg-path au_agent_lora.yaml

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).

{output_dir}/
    adapter_model.safetensors, adapter_config.json   the adapter, as PEFT and extractors.au.agent.AuAgent read it
    results.json         figures of the finished run
    loss_curves.png      training and held-out loss against the unigram baseline
    checkpoint_*/        where it goes on from, each with its adapter
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from affect.core.causal_lm import add_lora, load_causal_lm, load_tokenizer, stop_tokens
from affect.core.files import usual_rights, write_json
from affect.core.plots import draw_lines
from affect.data.sampling import StepBatches
from affect.engine.launch import PRECISION
from affect.engine.loop import train
from affect.engine.metrics import read_metrics
from affect.engine.sharding import whole
from affect.engine.task import Size, Watched, Weights
from affect.engine.trainer import trainable
from affect.models.saved import load_adapter
from affect.tasks.au_agent_config import AgentConfig, Steps
from affect.tasks.au_agent_records import (
    NO_LOSS,
    AnswerBatch,
    Example,
    Record,
    answer_loss,
    collate,
    digest,
    make_examples,
    read_sets,
    unigram_loss,
)
from affect.tasks.language import LanguageTask, share_out

logger = logging.getLogger(__name__)

_ROLE = "model_name_or_path"


@dataclass
class AgentTask(LanguageTask):
    """Answers of records; an epoch lies between two evaluations."""

    run: AgentConfig
    counts: Steps
    model: PeftModel
    examples: list[Example]
    held_out: list[Example]

    watched = Watched("val_loss", "held-out loss")
    noun = "records"

    def __post_init__(self) -> None:
        self.validates_first = bool(self.held_out)
        self.unigram = unigram_loss(self.examples, self.held_out) if self.held_out else None
        self._accepted = frozenset(inspect.signature(self.model.get_base_model().forward).parameters)

    def steps(self, processes: int) -> tuple[int, int]:
        """Return the steps between two evaluations or, where there are none, two checkpoints, and those of the run."""
        return self.counts.epoch, self.counts.run

    def batches(self, first: int, last: int, accelerator: Accelerator) -> Generator[AnswerBatch]:
        """Return this process's batches from step `first` to before `last`."""
        lengths = np.array([len(example["input_ids"]) for example in self.examples])
        by_length = (lambda cycle: lengths) if self.run.group_by_length else None
        draws = StepBatches(size=len(self.examples), lengths=by_length, **self.places(first, last, accelerator))
        return (collate([self.examples[draw.index] for draw in batch], self._accepted) for batch in draws)

    def size(self, batch: AnswerBatch) -> Size:
        """Return how much a batch holds; what weighs is the answers' tokens."""
        cells, tokens = batch.inputs["attention_mask"].numel(), int(batch.inputs["attention_mask"].sum())
        return Size(int((batch.labels != NO_LOSS).sum()), len(batch.names), tokens, cells, cells - tokens)

    def loss(self, model: nn.Module, batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy of the answers' tokens."""
        return answer_loss(model(**batch.inputs).logits, batch.labels), {}

    def held_out_batches(self, accelerator: Accelerator) -> tuple[Iterable[AnswerBatch], int]:
        """Return the held-out records, whose loss is then over the same tokens as the baseline's."""
        batches, own = share_out(self.held_out, self.run.per_device_eval_batch_size, accelerator)
        return (collate(batch, self._accepted) for batch in batches), own

    def weights(self) -> Weights:
        """Return the adapter's weights."""
        return {"adapter": {name: whole(weight) for name, weight in trainable(self.model).items()}}

    def save(self, folder: Path, weights: Weights) -> None:
        """Write the adapter as PEFT reads it."""
        self.model.save_pretrained(folder, state_dict=weights["adapter"])

    def load(self, checkpoint: Path) -> None:
        """Take the adapter of a checkpoint."""
        load_adapter(checkpoint, self.model)

    def begin(self, folder: Path, checkpoint: Path | None) -> None:
        """Figures mean finished, and this run is not."""
        (folder / "results.json").unlink(missing_ok=True)

    def end_epoch(self, folder: Path, weights: Weights, history: list[dict[str, Any]], best: bool, last: bool) -> None:
        """Draw the curves; write the adapter to keep and, at the end, the figures."""
        if best if self.run.load_best_model_at_end else last:
            self.save(folder, weights)
            usual_rights(folder / "adapter_model.safetensors")
        steps, _ = read_metrics(folder)
        self._draw(folder / "loss_curves.png", steps, history)
        if last:
            results = self._results(steps, history)
            write_json(folder / "results.json", results)
            if self.held_out:
                logger.info(
                    "held-out loss %.4f nats a token; before training %.4f, unigram baseline %.4f",
                    results["held_out_loss"],
                    results["held_out_loss_before"],
                    self.unigram,
                )
            logger.info("adapter: %s", folder)

    def _results(self, steps: list[dict[str, Any]], history: list[dict[str, Any]]) -> dict[str, Any]:
        ended, scored = history[-1], [entry for entry in history if entry["epoch"] and "val_loss" in entry]
        best = min(scored, key=lambda entry: entry["val_loss"], default={})
        kept = best if self.run.load_best_model_at_end else ended
        return {
            "train_records": len(self.examples),
            "held_out_records": len(self.held_out),
            "steps": ended["step"],
            "epochs": ended["step"] / self.counts.of_pass,
            "train_loss": float(np.mean([step["loss"] for step in steps[-self.run.log_every :]])),
            "held_out_loss_before": history[0].get("val_loss"),
            "held_out_loss": kept.get("val_loss"),
            "unigram_loss": self.unigram,
            "best_step": best.get("step"),
        }

    def _draw(self, path: Path, steps: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        scored = [entry for entry in history if "val_loss" in entry]
        lines = {"training": ([step["step"] for step in steps], [step["loss"] for step in steps])}
        if scored:
            lines["held out"] = ([entry["step"] for entry in scored], [entry["val_loss"] for entry in scored])
        draw_lines(
            path,
            lines,
            {"held out": {"marker": "o"}},
            level={} if self.unigram is None else {"unigram baseline": self.unigram},
            title="AU agent",
            xlabel="step",
            ylabel="loss, nats a token of the answer",
        )


def train_au_agent(config: AgentConfig, cfg_path: str | Path) -> bool:
    """Tune a language model as a configuration says; return False where SIGTERM ended it early.

    A run that was stopped goes on from its last checkpoint, a finished one is left alone. Raises ValueError for
    settings, data or weights that cannot be used, FloatingPointError where the loss is not finite.
    """
    sets = read_sets(config)
    config = config.model_copy(update={"records": digest(*sets)})
    folder = Path(config.output_dir)
    if (folder / "results.json").exists() and not (config.overwrite_output_dir or any(folder.glob("checkpoint*"))):
        logger.info("%s: this run is finished; for a new one use another output_dir, or remove the folder", folder)
        return True
    return train(config, cfg_path, lambda accelerator, folder, checkpoint: open_task(config, accelerator, *sets))


def open_task(config: AgentConfig, accelerator: Accelerator, train: list[Record], held_out: list[Record]) -> AgentTask:
    """Return the task with its model opened; raises ValueError for what cannot be used."""
    tokenizer = load_tokenizer(config.model_name_or_path, _ROLE)
    dtype = PRECISION[accelerator.mixed_precision]
    base = load_causal_lm(config.model_name_or_path, dtype, tokenizer, role=_ROLE)
    stops = stop_tokens(base.generation_config)
    if not stops:
        raise ValueError(f"{config.model_name_or_path}: expected an end-of-text token, found none; use another model")
    stop = stops[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    examples, unseen = (make_examples(records, tokenizer, stop, config.cutoff_len) for records in (train, held_out))
    unseen.sort(key=lambda example: len(example["input_ids"]))  # less padding
    logger.info("training on %d records, %d held out", len(examples), len(unseen))
    set_seed(config.seed)
    model = _with_lora(base, config)
    if config.compile:
        getattr(base, base.base_model_prefix).compile(dynamic=True)
    steps = config.steps(math.ceil(len(examples) / (config.batch_size_train * accelerator.num_processes)))
    return AgentTask(config.settled(steps), steps, model, examples, unseen)


def _with_lora(base: PreTrainedModel, config: AgentConfig) -> PeftModel:
    """Return the base with a new adapter, whose weights are float32 whatever the base's are."""
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if config.lora_target == ["all"] else config.lora_target,
        modules_to_save=config.additional_target or None,
        task_type="CAUSAL_LM",
    )
    model = add_lora(base, lora, config.gradient_checkpointing, "lora_target, additional_target")
    for weight in trainable(model).values():
        weight.data = weight.data.float()
    return model
