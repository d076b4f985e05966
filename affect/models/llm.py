"""The language model: any Hugging Face causal LM, its tokenizer with our placeholders, and LoRA.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.utils import is_bitsandbytes_available

from affect.core import causal_lm
from affect.core.schema import SPECIAL_TOKENS
from affect.data.config import ModelConfig

_ROLE = "model.llama_model"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a language model with the placeholder tokens added and a pad token set.

    Raises FileNotFoundError or ValueError when the folder or hub id cannot be read.
    """
    tokenizer = causal_lm.load_tokenizer(name, _ROLE)
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    # instruction-tuned Qwen models end a turn with a token of their own
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer of {name}: expected an end-of-text token, found none")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_llm(
    config: ModelConfig, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False
) -> PeftModel:
    """Return the frozen language model with a trainable LoRA adapter on its linear layers.

    gradient_checkpointing: activations are computed anew in the backward pass instead of being kept.
    Raises FileNotFoundError or ValueError when the folder or hub id cannot be read, has no such layers, or is to be
    held in 4 bits (Dettmers et al., "QLoRA", 2023, arXiv:2305.14314) where that cannot be.
    """
    options = _in_4bit() if config.load_in_4bit else {}
    base = causal_lm.load_causal_lm(config.llama_model, dtype, role=_ROLE, **options)
    if config.load_in_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # norms in float32
    layers = f"expected linear layers named {', '.join(LORA_TARGETS)}"
    model = causal_lm.add_lora(base, lora_config(config), gradient_checkpointing, layers)
    if config.frozen_llm:
        model.requires_grad_(False)
    return model


def lora_config(config: ModelConfig) -> LoraConfig:
    """Return what PEFT must know of the adapter."""
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )


def decoder(llm: PeftModel) -> nn.Module:
    """Return the language model's layers without its output layer; `decoder(llm).compile()` compiles them in place."""
    causal_lm = llm.get_base_model()
    return getattr(causal_lm, causal_lm.base_model_prefix)


def answer_logits(llm: PeftModel, embeddings: Tensor, attention_mask: Tensor, places: Tensor) -> Tensor:
    """Return the logits [M, V] at M places in [B * L] of embeddings [B, L, E] only.

    The output layer is by far the widest, so it sees the answer's positions and no others.
    """
    states = decoder(llm)(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return llm.get_base_model().get_output_embeddings()(states.flatten(0, 1).index_select(0, places))


def answer_loss(llm: PeftModel, embeddings: Tensor, attention_mask: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens of labels [B, L] that are foretold at M places in [B * L]."""
    logits = answer_logits(llm, embeddings, attention_mask, places)
    return nn.functional.cross_entropy(logits.float(), labels.flatten().index_select(0, places + 1))


def _in_4bit() -> dict[str, Any]:
    """Return the options that load a model in 4 bits onto this process's GPU."""
    lacking = [] if is_bitsandbytes_available() else ["bitsandbytes (pip install 'affect[bnb]')"]
    lacking += [] if torch.cuda.is_available() else ["a CUDA GPU"]
    if lacking:
        raise ValueError(f"model.load_in_4bit needs {' and '.join(lacking)}, which is not here; set it to False")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
