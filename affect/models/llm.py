"""The language model: any Hugging Face causal LM, its tokenizer with our placeholders, and LoRA.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from affect.config import ModelConfig
from affect.schema import SPECIAL_TOKENS
from affect.weights import resolve_weights

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a language model with the placeholder tokens added and a pad token set.

    Raises ValueError when the folder or hub id cannot be read.
    """
    path = resolve_weights(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError) as error:
        raise _not_found(name, path, error) from None
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    # instruction-tuned Qwen models end a turn with a token of their own
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer of {path}: expected an end-of-text token, found none")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_llm(config: ModelConfig, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Return the frozen language model with a trainable LoRA adapter on its linear layers.

    Raises ValueError when the folder or hub id cannot be read or has no such layers.
    """
    path = resolve_weights(config.llama_model)
    try:
        base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _not_found(config.llama_model, path, error) from None
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # the libraries' own affair
            model = get_peft_model(base, lora)
    except ValueError as error:
        raise ValueError(f"{path}: expected linear layers named {', '.join(LORA_TARGETS)} ({error})") from None
    if config.frozen_llm:
        model.requires_grad_(False)
    return model


def answer_logits(llm: PeftModel, embeddings: Tensor, attention_mask: Tensor, places: Tensor) -> Tensor:
    """Return the logits [N, V] at the N marked positions of embeddings [B, L, E] only.

    The output layer is by far the widest, so it sees the answer's positions and no others.
    """
    causal_lm = llm.get_base_model()
    body: nn.Module = getattr(causal_lm, causal_lm.base_model_prefix)
    states = body(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return causal_lm.get_output_embeddings()(states[places])


def _not_found(name: str, path: str, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(
        f"language model {name!r}: expected a Hugging Face folder or hub id at {path} ({reason}); "
        "set model.llama_model, or AFFECT_WEIGHTS to a YAML file that says where it is"
    )
