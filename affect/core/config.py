"""Configuration: YAML files as typed sections, options over them, every fault as one line; what all tasks share.

`task:` names the task: affectgpt, au_agent or expressions (fer). Users' files write many keys in more than one way;
each class of a section says which (`aliases`, `negated`), and which keys it does without (`not_needed`).
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import model_validator as check

from affect.core.files import shipped
from affect.core.reading import parse_yaml, reading

logger = logging.getLogger(__name__)

TASKS = ("affectgpt", "au_agent", "expressions")
_SPELLED = {"fer": "expressions"}
_KEYS_OF_TASKS = {
    "datasets": "affectgpt",
    "inference": "affectgpt",
    "images": "expressions",
    "predict": "expressions",
    "model_name_or_path": "au_agent",
    "finetuning_type": "au_agent",
}
"""Key at the top of a file -> the only task that has it."""


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line a fault."""


def also(**spellings: str) -> dict[str, str]:
    """Return spelling -> key of key="spelling spelling"."""
    return {spelling: key for key, others in spellings.items() for spelling in others.split()}


class Section(BaseModel):
    """A section of a file: an unknown key is a fault."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=False, populate_by_name=True)
    aliases: ClassVar[Mapping[str, str]] = {}
    """Spelling that users' files have, too -> key."""
    negated: ClassVar[Mapping[str, str]] = {}
    """Spelling that says the opposite of a key that is True or False -> key."""
    not_needed: ClassVar[Mapping[str, str]] = {}
    """Key that users' files have -> why nothing here needs it."""
    flat_options: ClassVar[bool] = False
    """Whether an option without a section goes to the first section that knows it."""


Kind = TypeVar("Kind", bound=Section)


def _device(value: Any) -> Any:
    """Users write GPU and CPU, too."""
    return {"GPU": "cuda", "CPU": "cpu"}.get(value, value)


def unset(value: Any) -> Any:
    """Users' templates write 'xxx' for 'fill me in'."""
    return None if value in ("xxx", "xxx-xxx", "") else value


Unset = BeforeValidator(unset)
Device = Annotated[str, BeforeValidator(_device)]


class RunSettings(Section):
    """How long, how fast and where to train: what all tasks share. A step is a move of the optimizer."""

    init_lr: float = Field(1e-4, gt=0)
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = Field(0.05, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Memory of Adam's second moment; short runs learn faster with less of it, e.g. 0.98."""
    adam_eps: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(None, gt=0)
    sam: bool = False
    """Sharpness-aware minimisation around the optimizer (Foret et al., ICLR 2021)."""
    sam_rho: float = Field(0.05, gt=0)
    sam_adaptive: bool = False
    """Scale the step by the weights (ASAM; Kwon et al., ICML 2021)."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, e.g. 0.999, which is then what is validated and kept; 0: none."""

    scheduler: Literal["constant", "linear", "cosine", "exponential", "plateau"] = "cosine"
    schedule_by: Literal["step", "epoch"] = "step"
    """How often the rate changes; plateau always looks after an epoch."""
    min_lr: float = Field(0.0, ge=0)
    warmup_lr: float | None = Field(None, ge=0)
    """Rate of step 0; when not given init_lr with warmup_steps, and next to nothing with warmup_epochs."""
    warmup_steps: int = Field(0, ge=0)
    warmup_epochs: float = Field(0.0, ge=0)
    gamma: float = Field(0.98, gt=0, le=1)
    """exponential: factor of an epoch."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(5, ge=0)
    """plateau: epochs without a better validation loss before the rate falls."""
    max_epoch: int = Field(30, gt=0)

    batch_size_train: int = Field(1, gt=0, le=1_000_000)
    """Samples of a batch; each process reads gradient_accumulation_steps batches a step."""
    gradient_accumulation_steps: int = Field(1, gt=0)

    device: Device = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    amp: bool = False
    """Mixed precision on a GPU: bfloat16 where it can, else float16 with a scaler."""
    compile: bool = False
    """Compile the network with torch.compile."""
    fsdp: bool = False
    """Divide weights and optimizer over the processes (FSDP) instead of copying them (DDP)."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them."""
    num_workers: int = Field(4, ge=0)
    seed: int = Field(42, ge=0, lt=2**32)

    log_every: int = Field(50, gt=0)
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    visualize_training: bool = True
    output_dir: str | None = None
    """Run folder; made from the name of the config file when not given."""
    overwrite_output_dir: bool = False
    """Where output_dir holds a run with other settings or data: begin anew in its place."""
    resume_ckpt_path: Annotated[str | None, Unset] = None
    """Checkpoint, or folder of a run, to go on from; an unfinished run in the run folder goes on by itself."""
    keep_checkpoints: int = Field(3, gt=0)
    save_every: int | None = Field(None, gt=0)
    """Steps between checkpoints within an epoch; after every epoch only, when not given."""
    early_stop: int | None = Field(None, ge=0)
    """Epochs without a better validation score after which training ends; 0 or not given: never."""

    aliases: ClassVar = also(
        init_lr="lr learning_rate",
        weight_decay="wd",
        adam_beta1="beta1",
        adam_beta2="beta2",
        adam_eps="eps",
        sam_rho="rho",
        sam_adaptive="adaptive",
        max_epoch="epochs num_train_epochs",
        batch_size_train="batch_size batch-size per_device_train_batch_size",
        gradient_accumulation_steps="accum_grad_iters grad_accum_steps",
        device="device_target",
        num_workers="workers",
        output_dir="out_dir save_dir",
        resume_ckpt_path="resume",
        early_stop="patience",
    )
    negated: ClassVar = {"no_amp": "amp"}
    passing: ClassVar[Set[str]] = {
        *("device", "keep_checkpoints", "log_every", "num_workers", "output_dir", "resume_ckpt_path", "save_every"),
        *("overwrite_output_dir", "trackers", "visualize_training"),
        *("amp", "compile", "early_stop", "fsdp", "gradient_checkpointing", "max_epoch"),
    }
    """Keys that may change when a run goes on: what costs time, memory or patience and leaves each step as it is."""

    @check(mode="before")
    @classmethod
    def _index_of_gpu(cls, content: Any) -> Any:
        """Users write gpu, too."""
        if not isinstance(content, dict) or "gpu" not in content:
            return content
        content = dict(content)
        if (gpu := content.pop("gpu")) is not None:
            if not re.fullmatch(r"-?\d+", str(gpu)):
                raise ValueError(f"gpu: expected the index of one GPU, or -1 for the CPU, found {gpu!r}; see torchrun")
            content["device"] = f"cuda:{gpu}" if int(gpu) >= 0 else "cpu"
        return content

    @check(mode="after")
    def _rates_fit(self) -> RunSettings:
        if self.min_lr > self.init_lr:
            raise ValueError(f"min_lr {self.min_lr} is above init_lr {self.init_lr}")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("warmup_steps and warmup_epochs are both given; leave one")
        return self


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, of this folder or shipped with the package (raises ConfigError)."""
    path = shipped(path)
    with reading(path, "a YAML configuration", kind=ConfigError):
        content = parse_yaml(path.read_text(encoding="utf-8"), path)
        if not isinstance(content, dict):
            found = "an empty file" if content is None else type(content).__name__
            raise ConfigError(f"{path}: expected a mapping of settings, found {found}")
    return content


def task_name(content: Mapping[str, Any], where: str) -> str:
    """Return which task a file is of; one that does not say it is the AU agent's with `stage: sft`, else AffectGPT's.

    Raises ConfigError for a task that there is not.
    """
    name = content.get("task", "au_agent" if content.get("stage") == "sft" else "affectgpt")
    name = _SPELLED.get(str(name), name)
    if name not in TASKS:
        raise ConfigError(f"{where}: task: expected {', '.join(TASKS[:-1])} or {TASKS[-1]} (fer), found {name!r}")
    return name


def parse(kind: type[Kind], content: Mapping[str, Any], where: str, options: Sequence[str] = ()) -> Kind:
    """Return a whole file's mapping, with `section.key=value` options set in it, as typed settings.

    `where` names the file in errors. Raises ConfigError with every fault at once: key, what was found and expected.
    """
    content = copy.deepcopy(dict(content))
    given: dict[str, str] = {}
    for option in options:
        key, spelled = apply_option(kind, content, option), option.partition("=")[0]
        if (first := given.setdefault(key, spelled)) != spelled:
            raise ConfigError(f"--options: found both {first} and {spelled}, expected one; they are the same setting")
    with reading(where, "settings", kind=ConfigError):
        task = kind.model_fields["task"].default if "task" in kind.model_fields else None
        if "task" in content and task:
            if content["task"] != task and task_name(content, where) != task:
                raise ConfigError(f"{where}: task: expected {task}, found {content['task']!r}")
            content["task"] = task
        settled, faults = _settled(kind, content, where)
        try:
            config = kind.model_validate(settled)
        except ValidationError as error:
            faults += [_describe(fault, where, kind, task) for fault in error.errors()]
        if faults:
            raise ConfigError("\n".join(faults))
        return config


def apply_option(kind: type[Section], content: dict[str, Any], option: str) -> str:
    """Set one `section.key=value` in a mapping, the value read as YAML, in place of every spelling of the key.

    Return the key's own name, after those of its sections.
    Raises ConfigError for an option that is none, or that no section knows where sections may be left out.
    """
    path, equals, value = option.partition("=")
    if not equals or not path:
        raise ConfigError(f"--options {option}: expected key=value, e.g. run.max_epoch=2")
    *sections, last = path.split(".")
    if not sections and kind.flat_options and last not in _spellings(kind):
        sections = [_section_with(kind, last, option)]
    target: Any = content
    holder: Any = kind
    keys = []
    for name in sections:
        keys.append(_key(holder, name))
        spelled = next((s for s in target if _key(holder, s) == _key(holder, name)), name)
        if target.get(spelled) is None:
            target[spelled] = {}
        target, holder = target[spelled], _held(holder, name)
        if not isinstance(target, dict):
            raise ConfigError(f"--options {option}: {name} is no section")
    for spelled in [s for s in target if _key(holder, s) == _key(holder, last)]:
        del target[spelled]
    with reading(f"--options {option}", "a YAML value", "quote it", ConfigError):
        target[last] = parse_yaml(value, f"--options {option}")
    return ".".join([*keys, _key(holder, last)])


def save_yaml(content: Mapping[str, Any], path: Path) -> None:
    """Write settings as YAML, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


def flat(section: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings as one level: section.key -> value."""
    settings: dict[str, Any] = {}
    for key, value in section.items():
        settings |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return settings


def _settled(holder: Any, content: Any, where: str, before: str = "") -> tuple[Any, list[str]]:
    """Return a mapping under the keys' own names, without what is not needed, and the keys that have two values."""
    if not isinstance(content, dict):
        return content, []
    settled: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    faults = []
    for spelling, value in content.items():
        if reason := holder.not_needed.get(spelling) if _is_section(holder) else None:
            logger.info("%s: %s%s is not needed: %s", where, before, spelling, reason)
            continue
        key = _key(holder, spelling)
        value, within = _settled(_held(holder, spelling), value, where, f"{before}{spelling}.")
        faults += within
        if _is_section(holder) and spelling in holder.negated:
            if not isinstance(value, bool):
                faults.append(f"{where}: {before}{spelling}: expected True or False, found {value!r}")
                continue
            value = not value
        if settled.get(key, value) != value:
            both = f"{before}{spelled[key]} and {before}{spelling}"
            faults.append(f"{where}: found both {both}, expected one; they are the same setting with two values")
        else:
            settled[key], spelled[key] = value, spelling
    return settled, faults


def _is_section(holder: Any) -> bool:
    return isinstance(holder, type) and issubclass(holder, Section)


def _key(holder: Any, spelling: str) -> str:
    return {**holder.aliases, **holder.negated}.get(spelling, spelling) if _is_section(holder) else spelling


def _held(holder: Any, key: str) -> Any:
    """Return the type of what a key holds, in a section or in a mapping of names to sections."""
    if _is_section(holder):
        field = holder.model_fields.get(_key(holder, key))
        return field.annotation if field else None
    return get_args(holder)[-1] if get_args(holder) else None


def _spellings(holder: Any) -> list[str]:
    """Return every key that a section may have."""
    if not _is_section(holder):
        return []
    gpu = ["gpu"] if issubclass(holder, RunSettings) else []
    return [*holder.model_fields, *holder.aliases, *holder.negated, *holder.not_needed, *gpu]


def _section_with(kind: type[Section], key: str, option: str) -> str:
    known: list[str] = []
    for name in kind.model_fields:
        spellings = _spellings(_held(kind, name))
        if key in spellings:
            return name
        known += spellings
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    raise ConfigError(f"--options {option}: unknown key{f'; did you mean {near[0]}?' if near else ''}")


def _describe(fault: Mapping[str, Any], where: str, kind: type[Section], task: str | None) -> str:
    """Return a fault that pydantic found as one line."""
    keys = [str(part) for part in fault["loc"]]
    key = ".".join(keys) or "file"
    if fault["type"] == "extra_forbidden":
        if len(keys) == 1 and _KEYS_OF_TASKS.get(key, task) != task:
            return f"{where}: {key}: a key of task {_KEYS_OF_TASKS[key]}, in a file of task {task}; leave one task"
        holder: Any = kind
        for name in keys[:-1]:
            holder = _held(holder, name)
        known = holder.model_fields if _is_section(holder) else []
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{where}: {key}: unknown key; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    found = "" if isinstance(fault["input"], dict | BaseModel) else f", found {fault['input']!r}"
    return f"{where}: {key}: {message[0].lower() + message[1:]}{found}"
