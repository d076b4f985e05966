"""Training the AU agent: LoRA on a frozen causal language model, by transformers' Trainer.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).

{output_dir}/
    adapter_model.safetensors, adapter_config.json   the adapter, as PEFT and extractors.au.agent.AuAgent read it
    results.json         figures of the finished run
    loss_curves.png      training and held-out loss against the unigram baseline
    settings.json        what the run was started with
    checkpoint-{step}/   where it goes on from
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from affect.core.causal_lm import add_lora, load_causal_lm, load_tokenizer, stop_tokens
from affect.core.files import atomic_write
from affect.engine.stop import StopRequest
from affect.tasks.au_agent_config import AgentConfig, load_agent_config
from affect.tasks.au_agent_records import NO_LOSS, AnswerCollator, Record, make_examples, read_sets, unigram_loss

logger = logging.getLogger(__name__)

_ROLE = "model_name_or_path"
HELD_OUT = "eval_token_loss"
"""What the library calls the mean loss of held-out answers' tokens."""
_PASSING_KEYS = {
    "dataloader_num_workers",
    "ddp_find_unused_parameters",
    "logging_steps",
    "output_dir",
    "overwrite_output_dir",
    "report_to",
    "save_total_limit",
}
"""Settings that may change when a run goes on."""


def train_au_agent(cfg_path: str | Path, options: Sequence[str] = ()) -> Path | None:
    """Tune a language model as a YAML file says; return the folder of its adapter, None where SIGTERM ended it early.

    A run that was stopped goes on from its last checkpoint, a finished one is left alone. Raises ValueError for
    settings, data or weights that cannot be used, FloatingPointError where the loss is not finite.
    """
    if os.environ.get("RANK", "0") != "0":  # torchrun's; one process speaks for all
        logging.getLogger("affect").setLevel(logging.WARNING)
    config = load_agent_config(cfg_path, options)
    folder = Path(config.output_dir)
    arguments = training_arguments(config)
    train, held_out = read_sets(config)
    settings = _settings(config, train, held_out)
    with arguments.main_process_first(local=False):
        checkpoint = _enter(folder, settings, config.overwrite_output_dir)
    if (folder / "results.json").exists():
        logger.info("%s: this run is finished; for a new one use another output_dir, or remove the folder", folder)
        return folder
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    tokenizer = load_tokenizer(config.model_name_or_path, _ROLE)
    base = load_causal_lm(config.model_name_or_path, dtype, tokenizer, role=_ROLE)
    stops = stop_tokens(base.generation_config)
    if not stops:
        raise ValueError(f"{config.model_name_or_path}: expected an end-of-text token, found none; use another model")
    stop = stops[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    examples, unseen = (make_examples(records, tokenizer, stop, config.cutoff_len) for records in (train, held_out))
    logger.info("training on %d records, %d held out", len(examples), len(unseen))
    set_seed(config.seed)
    model = _with_lora(base, config)
    reporter = _Reporter(folder, unigram_loss(examples, unseen) if unseen else None)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=AnswerCollator(frozenset(inspect.signature(base.forward).parameters)),
        train_dataset=examples,
        eval_dataset=unseen or None,
        callbacks=[reporter],
        compute_metrics=_token_loss,
        preprocess_logits_for_metrics=_losses_of_records,
    )
    trainer.remove_callback(PrinterCallback)
    return folder if _train(trainer, reporter, checkpoint, folder) else None


def _train(trainer: Trainer, reporter: _Reporter, checkpoint: Path | None, folder: Path) -> bool:
    """Train to the end, then write adapter, curves and figures; return whether the end was reached.

    The figures come last, since they mean finished.
    """
    has_unseen = trainer.eval_dataset is not None
    if checkpoint:
        logger.info("going on from %s", checkpoint)
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if checkpoint and trainer.state.global_step >= trainer.state.max_steps:  # the library would add a step
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        set_peft_model_state_dict(trainer.model, load_file(Path(best or checkpoint) / "adapter_model.safetensors"))
    else:
        # before training, too; by trainer.evaluate() it would keep several processes from being joined later
        trainer.args.eval_on_start = has_unseen and checkpoint is None
        with StopRequest() as stop:
            trainer.add_callback(_Stopper(stop))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        logger.info("stopped at step %d, as asked; the same command goes on from there", trainer.state.global_step)
        return False
    after = trainer.evaluate()[HELD_OUT] if has_unseen else None
    history = trainer.state.log_history
    before = next((entry[HELD_OUT] for entry in history if HELD_OUT in entry), None)
    trainer.save_model()
    results = {
        "train_records": len(trainer.train_dataset),
        "held_out_records": len(trainer.eval_dataset or []),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": next((entry["loss"] for entry in reversed(history) if "loss" in entry), None),
        "held_out_loss_before": before,
        "held_out_loss": after,
        "unigram_loss": reporter.unigram,
        "best_step": trainer.state.best_global_step,
    }
    if trainer.is_world_process_zero():
        reporter.draw(history)
        with atomic_write(folder / "results.json") as handle:
            handle.write(json.dumps(results, indent=1).encode() + b"\n")
    if has_unseen:
        logger.info(
            "held-out loss %.4f nats a token; before training %.4f, unigram baseline %.4f",
            after,
            before,
            reporter.unigram,
        )
    logger.info("adapter: %s", folder)
    return True


def training_arguments(config: AgentConfig) -> TrainingArguments:
    """Return transformers' form of the settings: half precision only on a GPU, trackers only where installed."""
    gpu = torch.cuda.is_available()
    if (config.bf16 or config.fp16) and not gpu:
        logger.info("no GPU: training on the CPU in float32")
    bf16 = config.bf16 and gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.bf16 and gpu and not bf16:
        logger.info("this GPU has no bfloat16: training in float16")
    trackers = [name for name in config.report_to if importlib.util.find_spec(name)]
    for name in config.report_to:
        if name not in trackers:
            logger.info("report_to: %s is not installed; loss_curves.png is drawn in any case", name)
    return TrainingArguments(
        **config.trainer_settings(),
        warmup_steps=config.warmup_steps or config.warmup_ratio,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        bf16=bf16,
        fp16=gpu and not bf16 and (config.fp16 or config.bf16),
        report_to=trackers or "none",
        metric_for_best_model=HELD_OUT,
        greater_is_better=False,
        logging_nan_inf_filter=False,
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
        use_cpu=not gpu,
    )


def _losses_of_records(logits: Tensor, labels: Tensor) -> Tensor:
    """Return summed loss and number of answer tokens of each record [B, 2], from logits [B, K, V] and labels [B, K]."""
    after = labels[:, 1:]
    losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), after, ignore_index=NO_LOSS, reduction="none")
    return torch.stack([losses.sum(1), (after != NO_LOSS).sum(1)], dim=1)


def _token_loss(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the mean over all tokens, as the baseline is; the library's own is one over batches."""
    losses, tokens = evaluated.predictions.sum(axis=0)
    return {"token_loss": float(losses / tokens)}


def _settings(config: AgentConfig, train: list[Record], held_out: list[Record]) -> dict[str, Any]:
    """Return everything that a run's course depends on."""
    records = json.dumps([[astuple(record) for record in records] for records in (train, held_out)])
    given = config.model_dump(mode="json", exclude=_PASSING_KEYS)
    return {**given, "records": hashlib.sha256(records.encode()).hexdigest()[:16]}


def _enter(folder: Path, settings: dict[str, Any], overwrite: bool) -> Path | None:
    """Make the folder ready for a run and return the checkpoint that it goes on from, if any.

    Raises ValueError where the folder holds a run with other settings that may not be overwritten.
    """
    path = folder / "settings.json"
    if path.exists() and (_last_checkpoint(folder) or (folder / "results.json").exists()):
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
            differing = sorted(key for key in settings.keys() | other.keys() if settings.get(key) != other.get(key))
        except (ValueError, AttributeError):
            differing = ["settings.json is not readable"]
        if not differing:
            return _last_checkpoint(folder)
        if not overwrite:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); give another output_dir, or "
                "overwrite_output_dir: true"
            )
        logger.info("%s: beginning anew, since other settings were used there: %s", folder, ", ".join(differing))
        (folder / "results.json").unlink(missing_ok=True)
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
    with atomic_write(path) as handle:
        handle.write(json.dumps(settings, indent=1, ensure_ascii=False).encode() + b"\n")
    return None


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the last whole checkpoint; the file that makes it whole is written last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False


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
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


class _Stopper(TrainerCallback):
    """Ends the run with a checkpoint after the step in which SIGTERM reached any of the processes."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Let all processes leave after the same step."""
        asked = torch.tensor(float(self.stop.asked), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(asked)
        if asked:
            control.should_save = control.should_training_stop = True


class _Reporter(TrainerCallback):
    """Says how the loss goes, draws it at every checkpoint, and stops where it is not finite."""

    def __init__(self, folder: Path, unigram: float | None) -> None:
        self.folder, self.unigram = folder, unigram

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Say one line; raises FloatingPointError at a loss that is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(
                f"step {state.global_step}: the loss is {logs['loss']}; lower learning_rate, or look at the records; "
                "the last checkpoint is kept"
            )
        place = f"step {state.global_step}/{state.max_steps}"
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            logger.info("%s  lr: %.8f  loss: %.4f", place, logs["learning_rate"], logs["loss"])
        elif HELD_OUT in logs:
            logger.info("%s  held-out loss: %.4f  unigram baseline: %.4f", place, logs[HELD_OUT], self.unigram)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Draw the curves so far."""
        if state.is_world_process_zero:
            self.draw(state.log_history)

    def draw(self, history: list[dict[str, float]]) -> None:
        """Write loss_curves.png."""
        figure, axes = plt.subplots(figsize=(9, 5.5))
        for key, name, style in (("loss", "training", "-"), (HELD_OUT, "held out", "o-")):
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=name)
        if self.unigram is not None:
            axes.axhline(self.unigram, color="tab:gray", linestyle="--", label="unigram baseline")
        axes.set(title="AU agent", xlabel="step", ylabel="loss, nats a token of the answer")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(self.folder / "loss_curves.png", dpi=120)
        plt.close(figure)
