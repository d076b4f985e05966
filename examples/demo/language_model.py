"""The demo's language model: a small Qwen2 trained on templated text in under half a minute on two cores."""

from __future__ import annotations

import hashlib
import json
import logging
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


def make_language_model(folder: Path, corpus: list[str], seed: int = 0) -> float | None:
    """Train tokenizer and model on a corpus and save them in the Hugging Face format.

    A folder made of the same corpus and settings is kept. Returns the last loss, or None when kept.
    """
    made_of = {**SETTINGS, "seed": seed, "corpus": hashlib.sha256("\n".join(corpus).encode()).hexdigest()}
    stamp = folder / "made_of.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == made_of:
        logger.info("the language model in %s is up to date", folder)
        return None
    tokenizer = _train_tokenizer(corpus)
    rows = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    ids = [[rows[0], *tokenizer(_without_placeholders(text)).input_ids, rows[1]] for text in corpus]
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
            bos_token_id=rows[0],
            eos_token_id=rows[1],
        )
    )
    loss = _fit(model, ids, tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    stamp.write_text(json.dumps(made_of))
    return loss


def _train_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SETTINGS["vocabulary"],
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([_without_placeholders(text) for text in corpus], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>")


def _without_placeholders(text: str) -> str:
    """The model never sees a placeholder: fused tokens take its place."""
    for placeholder in PLACEHOLDERS.values():
        text = text.replace(placeholder, "")
    return text


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
