"""The one loader of causal language models of Hugging Face form.

A model folder's own code is never run, nor asked about: a folder with `auto_map` is loaded by the library's own class,
or refused. Its generation settings do not count either: greedy is greedy, whatever generation_config.json says.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from affect.core.reading import require_within, shortened
from affect.core.weights import OWN_CODE, resolve_weights, why_offline


def find_weights(name: str | Path, role: str) -> str:
    """Return the folder or hub id that stands behind a name; only `name` and `owner/name` can be hub ids.

    Raises FileNotFoundError for a folder that is not there; `role` says in errors what the weights are for.
    """
    source = resolve_weights(str(name))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise FileNotFoundError(
            f"{role}: the folder {path} does not exist; expected weights as save_pretrained writes them, so correct "
            "the path, or say where they are in the YAML file that AFFECT_WEIGHTS names"
        )
    return source


@contextmanager
def one_sentence(role: str, source: str) -> Iterator[None]:
    """Turn what libraries raise on weights that they cannot load into one ValueError."""
    offline = why_offline(source)
    try:
        yield
    except Exception as error:  # on broken files libraries raise nearly every kind there is
        reason = shortened((str(error).strip() or type(error).__name__).splitlines()[0], 200)
        if "trust_remote_code" in str(error):
            reason = OWN_CODE
        reason = f"{offline}; {reason}" if offline else reason
        raise ValueError(
            f"{role}: {source} cannot be loaded ({reason}); expected a folder as save_pretrained writes it, or a hub "
            "id that this machine can fetch"
        ) from error


def load_tokenizer(name: str | Path, role: str = "language model") -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model (raises FileNotFoundError or ValueError where there is none)."""
    source = find_weights(name, role)
    with one_sentence(role, source):
        # transformers 5 forgets padding_side unless the constructor gets it
        return AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False)


def load_causal_lm(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter: str | Path | None = None,
    role: str = "language model",
    **options: Any,
) -> PreTrainedModel | PeftModel:
    """Return a causal language model, with a PEFT adapter where one is named, that stops where its answers end.

    tokenizer: its end-of-text token ends an answer, too; options: further ones of `from_pretrained`. Raises
    FileNotFoundError where a folder is missing, ValueError where it holds something else or a hub id cannot be loaded.
    """
    source = find_weights(name, role)
    adapter_source = find_weights(adapter, f"{role}, adapter") if adapter else None
    with one_sentence(role, source):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, **options)
    stops = stop_tokens(model.generation_config, tokenizer)
    model.generation_config = GenerationConfig()
    model.generation_config.update(eos_token_id=stops or None, pad_token_id=stops[0] if stops else None)
    if adapter_source:
        with one_sentence(f"{role}, adapter", adapter_source):
            rank = adapter_rank(adapter_source)
        require_within("adapter_rank", rank, adapter_source)
        with one_sentence(f"{role}, adapter", adapter_source):
            model = PeftModel.from_pretrained(model, adapter_source)
    return model


def adapter_rank(adapter: str | Path) -> int:
    """Return the largest rank of a LoRA adapter; its file alone says how much memory its weights take."""
    config = PeftConfig.from_pretrained(adapter)
    return max([getattr(config, "r", 0), *getattr(config, "rank_pattern", {}).values()])


def stop_tokens(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
    """Return the ids that end an answer, those of generation settings and of a tokenizer, sorted."""
    own = generation.eos_token_id if generation else None
    stops = own if isinstance(own, list) else [own]
    return sorted({stop for stop in (*stops, tokenizer and tokenizer.eos_token_id) if stop is not None})


def add_lora(model: PreTrainedModel, lora: LoraConfig, gradient_checkpointing: bool, wanted: str) -> PeftModel:
    """Return a model with a new adapter; raises ValueError naming `wanted` where it has no such layers.

    gradient_checkpointing: activations are computed anew in the backward pass instead of being kept.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)  # the libraries' own affair
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise ValueError(f"{wanted}: {model.name_or_path} has no such layers ({error})") from None
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapted


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return rows of token ids as one batch [B, L] and its mask [B, L]: (5, 6), (7,) -> (5, 6), (0, 7).

    What follows a prompt follows it without a gap; padding is masked, so any token will do.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


@torch.inference_mode()
def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[str]:
    """Yield what a model says to each prompt, given as token ids, up to its stop."""
    stops = stop_tokens(model.generation_config)
    for start in range(0, len(prompts), batch_size):
        ids, mask = (part.to(model.device) for part in pad_left(prompts[start : start + batch_size]))
        made = model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
        # after its stop an answer is filled up to the longest of its batch
        said = [list(takewhile(lambda token: token not in stops, row)) for row in made]
        yield from tokenizer.batch_decode(said, skip_special_tokens=True)
