"""Settings of AU agent training: a flat YAML file with LLaMA-Factory's keys, meanings and defaults.

LLaMA-Factory (Zheng et al., 2024, arXiv:2403.13372) is what users tune with, and so their files are of this form.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Set
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic import model_validator as check

from affect.core.config import RunSettings, also

logger = logging.getLogger(__name__)

_ALWAYS = "it is always done"


def _when(value: Any) -> Any:
    """YAML reads a bare `no` as False."""
    return "no" if value is False else value


def _listed(value: Any) -> Any:
    """Return the parts of `a, b`; nothing where users write none."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
    return value or []


When = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_when)]
Names = Annotated[list[str], BeforeValidator(_listed)]


class Steps(NamedTuple):
    """How many steps, by what they are counted for."""

    of_pass: int
    """All records once."""
    epoch: int
    """Between two evaluations or, where there are none, two checkpoints."""
    run: int
    saved: int | None
    """Between two checkpoints; each evaluation writes one, too."""


class AgentConfig(RunSettings):
    """A whole file: what all tasks share, with LLaMA-Factory's defaults, and what to tune on what."""

    task: Literal["au_agent"] = "au_agent"
    stage: Literal["sft"] = "sft"
    do_train: Literal[True] = True
    finetuning_type: Literal["lora"] = "lora"
    peft_type: Literal["lora"] = "lora"

    model_name_or_path: str
    """Name (see affect/core/weights.py), folder or hub id of a causal language model."""
    lora_rank: int = Field(8, gt=0, le=4096)
    lora_alpha: int | None = Field(None, gt=0)
    """Twice the rank, when not given."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target: Names = Field(default_factory=lambda: ["all"])
    """Names of layers, separated by commas; all means every linear layer but the output layer."""
    additional_target: Names = Field(default_factory=list)
    """Layers that are trained whole and saved with the adapter, e.g. embed_tokens,lm_head."""

    dataset: Annotated[Names, Field(min_length=1)]
    """Names in {dataset_dir}/dataset_info.json, or files with records, separated by commas."""
    eval_dataset: Names = Field(default_factory=list)
    dataset_dir: str = "data"
    val_size: float = Field(0.0, ge=0)
    """Records held back where eval_dataset is not given: a share below 1, a number from 1."""
    max_samples: int | None = Field(None, gt=0)
    """Most records of each data set; the first ones are taken."""
    cutoff_len: int = Field(2048, gt=0)
    """Most tokens of question and answer together."""
    default_system: str | None = None
    """System turn of records without one; that of the agent in use, when not given."""
    records: str = ""
    """Digest of what the data sets hold; the run's own config.yaml has it."""

    output_dir: str
    """Where the adapter, its checkpoints, figures and curves go."""
    batch_size_train: int = Field(8, gt=0, le=1_000_000)
    per_device_eval_batch_size: int = Field(8, gt=0, le=1_000_000)
    init_lr: float = Field(5e-5, gt=0)
    max_epoch: float = Field(3.0, gt=0)
    """Passes over the records."""
    max_steps: int = -1
    """Where positive: steps of the run, whatever max_epoch says."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "exponential", "plateau"] = "linear"
    warmup_lr: float | None = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, where warmup_steps is not given."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: Annotated[float | None, BeforeValidator(lambda value: value or None)] = Field(1.0, gt=0)
    """0: gradients are not cut."""
    bf16: bool = False
    fp16: bool = False
    """Half precision on a GPU, by whichever name: bfloat16 where it can, else float16."""
    group_by_length: bool = False
    """Put records of like length into one batch, so that less is padding."""
    log_every: int = Field(500, gt=0)
    save_strategy: When = "steps"
    save_every: int = Field(500, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int | None = Field(None, gt=0)
    """All, when not given."""
    eval_strategy: When = "no"
    eval_steps: int | None = Field(None, gt=0)
    """As log_every, when not given."""
    load_best_model_at_end: bool = False
    metric_for_best_model: Literal["eval_loss", "loss"] = "eval_loss"
    greater_is_better: Literal[False] = False
    trackers: Annotated[list[Literal["tensorboard", "wandb"]], BeforeValidator(_listed)] = Field(default_factory=list)

    aliases: ClassVar[Mapping[str, str]] = RunSettings.aliases | also(
        scheduler="lr_scheduler_type",
        log_every="logging_steps",
        save_every="save_steps",
        keep_checkpoints="save_total_limit",
        eval_strategy="evaluation_strategy",
        trackers="report_to",
    )
    not_needed: ClassVar[Mapping[str, str]] = {
        "trust_remote_code": "code that comes with weights is never run",
        "template": "the chat template of the model's own tokenizer is used, as the agent in use does",
        "preprocessing_num_workers": "records are read in seconds by one process",
        "dataloader_num_workers": "batches are made of records in memory",
        "overwrite_cache": "nothing is kept from earlier readings",
        "plot_loss": _ALWAYS,
        "logging_dir": "tensorboard files go to output_dir",
        "resume_from_checkpoint": "a run that was stopped goes on by itself when the same command is given",
        "do_eval": "eval_strategy says it",
        "use_fast_tokenizer": _ALWAYS,
        "flash_attn": "torch chooses its attention by itself",
        "ddp_timeout": "processes wait for each other a day",
        "ddp_find_unused_parameters": _ALWAYS,
        "remove_unused_columns": "there are none",
    }
    uncompared: ClassVar[Set[str]] = frozenset()

    @property
    def passing(self) -> Set[str]:
        """Keys that may change when a run goes on; an epoch is the whole run where nothing divides it."""
        undivided = {"max_epoch"} if self.eval_strategy == self.save_strategy == "no" else set()
        return RunSettings.passing - {"save_every"} - undivided | {"bf16", "fp16", "per_device_eval_batch_size"}

    @property
    def run(self) -> AgentConfig:
        """The part that all tasks share: the file is flat."""
        return self

    @check(mode="after")
    def _settings_agree(self) -> AgentConfig:
        faults = []
        if self.bf16 and self.fp16:
            faults.append("bf16 and fp16 are both True; leave one")
        if self.eval_dataset and self.val_size:
            faults.append("eval_dataset and val_size are both given; leave one")
        if self.early_stop and self.eval_strategy == "no":
            faults.append("early_stop needs an eval_strategy")
        if self.load_best_model_at_end:
            if self.eval_strategy == "no" or self.eval_strategy != self.save_strategy:
                faults.append(
                    f"load_best_model_at_end needs equal eval_strategy and save_strategy, found {self.eval_strategy} "
                    f"and {self.save_strategy}"
                )
            elif self.eval_strategy == "steps" and self.save_every % self.eval_every:
                faults.append(
                    f"load_best_model_at_end needs save_steps {self.save_every} to be a multiple of eval_steps "
                    f"{self.eval_every}"
                )
        if faults:
            raise ValueError("; ".join(faults))
        self.amp = self.amp or self.bf16 or self.fp16
        for name in [name for name in self.trackers if not find_spec(name)]:
            logger.info("report_to: %s is not installed; loss_curves.png is drawn in any case", name)
            self.trackers.remove(name)
        return self

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.eval_steps or self.log_every

    def steps(self, batches: int) -> Steps:
        """Return how many steps a run has whose passes over the records have some number of batches."""
        each = math.ceil(batches / self.gradient_accumulation_steps)
        total = self.max_steps if self.max_steps > 0 else math.ceil(self.max_epoch * each)
        evaluated, saved = {"steps": self.eval_every, "epoch": each}, {"steps": self.save_every, "epoch": each}
        epoch = evaluated.get(self.eval_strategy) or saved.get(self.save_strategy, total)
        return Steps(each, min(epoch, total), total, saved.get(self.save_strategy))

    def settled(self, steps: Steps) -> AgentConfig:
        """Return the settings as a run of these steps follows them."""
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * steps.run)
        return self.model_copy(
            update={
                "warmup_steps": 0 if self.scheduler == "constant" else warmup,
                "save_every": steps.saved if steps.saved and steps.saved < steps.epoch else None,
                "keep_checkpoints": self.keep_checkpoints or (steps.run if steps.saved else 1),
            }
        )
