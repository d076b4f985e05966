"""Settings of AU agent training: a flat YAML file with LLaMA-Factory's keys, meanings and defaults.

LLaMA-Factory (Zheng et al., 2024, arXiv:2403.13372) is what users tune with, and so their files are of this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import model_validator as check

from affect.core.typed_yaml import ConfigError, describe_fault, drop_not_needed, read_yaml

When = Literal["no", "steps", "epoch"]


def _when(value: Any) -> Any:
    """YAML reads a bare `no` as False."""
    return "no" if value is False else value


def _listed(value: Any) -> Any:
    """Return the parts of `a, b`; nothing where users write none."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
    return value or []


Names = Annotated[list[str], BeforeValidator(_listed)]


class _TrainerSettings(BaseModel):
    """Settings that go to transformers.TrainingArguments as they are."""

    output_dir: str
    """Where the adapter, its checkpoints, figures and curves go."""
    per_device_train_batch_size: int = Field(8, gt=0)
    per_device_eval_batch_size: int = Field(8, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int = -1
    """Where positive: optimizer steps of the run, whatever num_train_epochs says."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=0)
    logging_steps: int = Field(500, gt=0)
    save_strategy: Annotated[When, BeforeValidator(_when)] = "steps"
    save_steps: int = Field(500, gt=0)
    save_total_limit: int | None = Field(None, gt=0)
    eval_strategy: Annotated[When, BeforeValidator(_when)] = Field(
        "no", validation_alias=AliasChoices("eval_strategy", "evaluation_strategy")
    )
    eval_steps: int | None = Field(None, gt=0)
    """As logging_steps, when not given."""
    load_best_model_at_end: bool = False
    dataloader_num_workers: int = Field(0, ge=0)
    ddp_find_unused_parameters: bool | None = None
    seed: int = 42


class AgentConfig(_TrainerSettings):
    """A whole file."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    stage: Literal["sft"] = "sft"
    do_train: Literal[True] = True
    finetuning_type: Literal["lora"] = "lora"
    peft_type: Literal["lora"] = "lora"

    model_name_or_path: str
    """Name (see affect/core/weights.py), folder or hub id of a causal language model."""
    lora_rank: int = Field(8, gt=0)
    lora_alpha: int | None = Field(None, gt=0)
    """Twice the rank, when not given."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target: Names = ["all"]
    """Names of layers, separated by commas; all means every linear layer but the output layer."""
    additional_target: Names = []
    """Layers that are trained whole and saved with the adapter, e.g. embed_tokens,lm_head."""

    dataset: Annotated[Names, Field(min_length=1)]
    """Names in {dataset_dir}/dataset_info.json, or files with records, separated by commas."""
    eval_dataset: Names = []
    dataset_dir: str = "data"
    val_size: float = Field(0.0, ge=0)
    """Records held back where eval_dataset is not given: a share below 1, a number from 1."""
    max_samples: int | None = Field(None, gt=0)
    """Most records of each data set; the first ones are taken."""
    cutoff_len: int = Field(2048, gt=0)
    """Most tokens of question and answer together."""
    default_system: str | None = None
    """System turn of records without one; that of the agent in use, when not given."""

    overwrite_output_dir: bool = False
    """Where output_dir holds a run with other settings or data: begin anew in its place."""
    warmup_steps: int = Field(0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, where warmup_steps is not given."""
    group_by_length: bool = False
    """Put records of like length into one batch, so that less is padding."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them."""
    bf16: bool = False
    fp16: bool = False
    report_to: Names = []
    """tensorboard, wandb; figures and curves are written in any case."""
    metric_for_best_model: Literal["eval_loss", "loss"] = "eval_loss"
    greater_is_better: Literal[False] = False

    @check(mode="after")
    def _settings_agree(self) -> AgentConfig:
        faults = []
        if unknown := [name for name in self.report_to if name not in ("tensorboard", "wandb")]:
            faults.append(f"report_to is {unknown[0]}, expected tensorboard, wandb or none")
        if self.bf16 and self.fp16:
            faults.append("bf16 and fp16 are both True; leave one")
        if self.eval_dataset and self.val_size:
            faults.append("eval_dataset and val_size are both given; leave one")
        if self.load_best_model_at_end:
            if self.eval_strategy == "no" or self.eval_strategy != self.save_strategy:
                faults.append(
                    f"load_best_model_at_end needs equal eval_strategy and save_strategy, found {self.eval_strategy} "
                    f"and {self.save_strategy}"
                )
            elif self.eval_strategy == "steps" and self.save_steps % (self.eval_steps or self.logging_steps):
                faults.append(
                    f"load_best_model_at_end needs save_steps {self.save_steps} to be a multiple of eval_steps "
                    f"{self.eval_steps or self.logging_steps}"
                )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def trainer_settings(self) -> dict[str, Any]:
        """Return what goes to transformers.TrainingArguments as it is."""
        return self.model_dump(include=set(_TrainerSettings.model_fields))


_ALWAYS = "it is always done"
NOT_NEEDED = {
    "trust_remote_code": "code that comes with weights is never run",
    "template": "the chat template of the model's own tokenizer is used, as the agent in use does",
    "preprocessing_num_workers": "records are read in seconds by one process",
    "overwrite_cache": "nothing is kept from earlier readings",
    "plot_loss": _ALWAYS,
    "logging_dir": "tensorboard files go to output_dir",
    "resume_from_checkpoint": "a run that was stopped goes on by itself when the same command is given",
    "do_eval": "eval_strategy says it",
    "use_fast_tokenizer": _ALWAYS,
    "flash_attn": "torch chooses its attention by itself",
    "ddp_timeout": "torchrun's own is kept",
    "remove_unused_columns": "there are none",
}
"""Key that users' files have -> why nothing here needs it."""


def load_agent_config(path: str | Path, options: Sequence[str] = ()) -> AgentConfig:
    """Read a YAML file, apply `key=value` options and return the typed settings.

    Raises ConfigError with every fault at once: file, key, what was found and expected.
    """
    content = read_yaml(path, options)
    drop_not_needed(content, NOT_NEEDED, str(path))
    try:
        return AgentConfig.model_validate(content)
    except ValidationError as error:
        known = [*AgentConfig.model_fields, "evaluation_strategy"]
        raise ConfigError("\n".join(describe_fault(fault, str(path), known) for fault in error.errors())) from None
