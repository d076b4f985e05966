"""The language model: any Hugging Face causal LM, its tokenizer with our placeholders, and LoRA.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.utils import is_bitsandbytes_available

from affect.core.schema import SPECIAL_TOKENS
from affect.core.weights import resolve_weights
from affect.data.collate import IGNORED
from affect.data.config import ModelConfig

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


def load_llm(
    config: ModelConfig, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False
) -> PeftModel:
    """Return the frozen language model with a trainable LoRA adapter on its linear layers.

    gradient_checkpointing: activations are computed anew in the backward pass instead of being kept.
    Raises ValueError when the folder or hub id cannot be read, has no such layers, or is to be held in
    4 bits (Dettmers et al., "QLoRA", 2023, arXiv:2305.14314) where that cannot be.
    """
    path = resolve_weights(config.llama_model)
    options = _in_4bit() if config.load_in_4bit else {}
    try:
        base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise _not_found(config.llama_model, path, error) from None
    if config.load_in_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # norms in float32
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)  # the libraries' own affair
            model = get_peft_model(base, lora_config(config))
            if gradient_checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ValueError(f"{path}: expected linear layers named {', '.join(LORA_TARGETS)} ({error})") from None
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
    """Return the logits [N, V] at the N marked positions of embeddings [B, L, E] only.

    The output layer is by far the widest, so it sees the answer's positions and no others.
    """
    states = decoder(llm)(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return llm.get_base_model().get_output_embeddings()(states[places])


def answer_loss(llm: PeftModel, embeddings: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the labelled tokens of labels [B, L], each foretold by the place before it."""
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    places = nn.functional.pad(labelled, (0, 1))
    logits = answer_logits(llm, embeddings, attention_mask, places)
    return nn.functional.cross_entropy(logits.float(), targets[labelled])


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


def _not_found(name: str, path: str, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(
        f"language model {name!r}: expected a Hugging Face folder or hub id at {path} ({reason}); "
        "set model.llama_model, or AFFECT_WEIGHTS to a YAML file that says where it is"
    )
