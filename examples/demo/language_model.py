"""The demo's language model: a small Qwen2 trained on templated text in under half a minute on two cores."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import transformers
from rich.progress import track
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from affect.core.schema import PLACEHOLDERS
from affect.data.collate import IGNORED

logger = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()

Text = tuple[Tensor, Tensor]
"""Tokens of a prompt and its answer, and those of them that are to be learned."""
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "max_position_embeddings": 384}
SETTINGS = {"vocabulary": 800, "iterations": 240, "batch": 32, "rate": 2e-3, "warmup": 20}


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
    texts = []
    for *prompt, answer in parts:
        asked = [begin, *(token for part in prompt for token in tokenizer(part).input_ids)]
        told = [*tokenizer(answer).input_ids, end]
        texts.append((torch.tensor(asked + told), torch.tensor([IGNORED] * len(asked) + told)))
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), **SIZES, tie_word_embeddings=True, bos_token_id=begin, eos_token_id=end
    )
    model = Qwen2ForCausalLM(config)
    loss = _fit(model, texts, end)
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


def _batches(texts: list[Text]) -> Iterator[list[Text]]:
    """Yield batches of texts of like length, drawn for ever."""
    size = SETTINGS["batch"]
    while True:
        drawn = sorted((texts[i] for i in torch.randint(len(texts), (16 * size,))), key=lambda text: len(text[0]))
        for batch in torch.randperm(16).tolist():
            yield drawn[batch * size : (batch + 1) * size]


def _fit(model: Qwen2ForCausalLM, texts: list[Text], pad: int) -> float:
    """Train on the answers and return the last loss; prompts are read, and need not be foretold."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["rate"], weight_decay=0.01)
    steps, warmup = SETTINGS["iterations"], SETTINGS["warmup"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * max(0.05, 1 - step / steps)
    )
    model.train()
    loss = torch.tensor(float("nan"))
    for _, batch in zip(track(range(steps), "teaching the language"), _batches(texts), strict=False):
        ids = pad_sequence([each for each, _ in batch], batch_first=True, padding_value=pad)
        labels = pad_sequence([each for _, each in batch], batch_first=True, padding_value=IGNORED)[:, 1:]
        states = model.model(input_ids=ids).last_hidden_state[:, :-1]  # padding is last, so no token looks at it
        loss = torch.nn.functional.cross_entropy(model.lm_head(states[labels != IGNORED]), labels[labels != IGNORED])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return loss.item()
