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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from affect.core.schema import PLACEHOLDERS

logger = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()

SETTINGS = {
    "vocabulary": 800,
    "width": 128,
    "layers": 4,
    "heads": 4,
    "iterations": 200,
    "batch": 32,
    "rate": 2e-3,
    "warmup": 20,
}


def make_language_model(folder: Path, corpus: list[tuple[str, str]], seed: int = 0) -> float | None:
    """Train tokenizer and model on prompts and answers and save them in the Hugging Face format.

    Prompt and answer are tokenised apart, as in training and answering: the prompt ends in a space, which would else go
    into the answer's first token, and the model would never have seen an answer begin.
    A folder made of the same corpus and settings is kept. Returns the last loss, or None when kept.
    """
    made_of = {**SETTINGS, "seed": seed, "corpus": hashlib.sha256(json.dumps(corpus).encode()).hexdigest()}
    stamp = folder / "made_of.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == made_of:
        logger.info("the language model in %s is up to date", folder)
        return None
    parts = [[*_between_placeholders(prompt), answer] for prompt, answer in corpus]
    tokenizer = _train_tokenizer(part for text in parts for part in text)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [[begin, *(token for part in text for token in tokenizer(part).input_ids), end] for text in parts]
    torch.manual_seed(seed)
    width = SETTINGS["width"]
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=SETTINGS["layers"],
            num_attention_heads=SETTINGS["heads"],
            num_key_value_heads=SETTINGS["heads"],
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=begin,
            eos_token_id=end,
        )
    )
    loss = _fit(model, ids, end)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    stamp.write_text(json.dumps(made_of))
    return loss


def _train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SETTINGS["vocabulary"],
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>")


def _between_placeholders(text: str) -> list[str]:
    """The model never sees a placeholder: fused tokens take its place, between texts that are tokenised apart."""
    return [part for part in re.split("|".join(PLACEHOLDERS.values()), text) if part]


def _fit(model: Qwen2ForCausalLM, ids: list[list[int]], pad: int) -> float:
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
        longest = max(map(len, rows))
        batch = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        inside = torch.arange(longest) < lengths[:, None]
        loss = model(input_ids=batch, attention_mask=inside.long(), labels=batch.masked_fill(~inside, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return loss.item()
