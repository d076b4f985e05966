"""The demo's language model: a small Qwen2 trained on templated text in under half a minute on two cores."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from rich.progress import track
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from affect.core.schema import PLACEHOLDERS

logger = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()

SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "max_position_embeddings": 1024}
SETTINGS = {"vocabulary": 800, "iterations": 200, "batch": 32, "rate": 2e-3, "warmup": 20}


def make_language_model(folder: Path, corpus: list[tuple[str, str]], seed: int = 0) -> float | None:
    """Train tokenizer and model on prompts and answers and save them in the Hugging Face format.

    Prompt and answer are tokenised apart, as in training and answering: the prompt ends in a space, which would else go
    into the answer's first token, and the model would never have seen an answer begin.
    A folder made of the same corpus and settings is kept. Returns the last loss, or None when kept.
    """
    made_of = {**SIZES, **SETTINGS, "seed": seed, "corpus": hashlib.sha256(json.dumps(corpus).encode()).hexdigest()}
    stamp = folder / "made_of.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == made_of:
        logger.info("the language model in %s is up to date", folder)
        return None
    parts = [[*_between_placeholders(prompt), answer] for prompt, answer in corpus]
    words = (part for text in parts for part in text)
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(words, SETTINGS["vocabulary"], marks, bos_token=marks[0], eos_token=marks[1])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [torch.tensor([begin, *(t for part in text for t in tokenizer(part).input_ids), end]) for text in parts]
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), **SIZES, tie_word_embeddings=True, bos_token_id=begin, eos_token_id=end
    )
    model = Qwen2ForCausalLM(config)
    loss = _fit(model, ids, end)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    stamp.write_text(json.dumps(made_of))
    return loss


def train_tokenizer(texts: Iterable[str], size: int, special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of `size` tokens, the special ones first; roles: those of special tokens."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, size, min_frequency=0, show_progress=False, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), **roles)


def _between_placeholders(text: str) -> list[str]:
    """The model never sees a placeholder: fused tokens take its place, between texts that are tokenised apart."""
    return [part for part in re.split("|".join(PLACEHOLDERS.values()), text) if part]


def _fit(model: Qwen2ForCausalLM, ids: list[Tensor], pad: int) -> float:
    """Train on next-token prediction and return the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["rate"], weight_decay=0.01)
    steps, warmup = SETTINGS["iterations"], SETTINGS["warmup"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * max(0.05, 1 - step / steps)
    )
    model.train()
    loss = torch.tensor(float("nan"))
    for _ in track(range(steps), "teaching the language"):
        rows = [ids[i] for i in torch.randint(len(ids), (SETTINGS["batch"],)).tolist()]
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        inside = labels != -100
        loss = model(input_ids=labels.where(inside, pad), attention_mask=inside.long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return loss.item()
