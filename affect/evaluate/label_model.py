"""From free text to labels by a language model: any causal LM of Hugging Face form, asked in batches.

The steps are those of the published scorer: one user turn without a system turn, two worked examples, batches
that are as even as possible, the answer cleaned by `clean_model_answer`. The wording is this project's own, and
decoding is greedy, so that the same text always gets the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from affect.core.causal_lm import answers, load_causal_lm, load_tokenizer
from affect.core.conversation import question_ids
from affect.core.device import model_precision
from affect.evaluate.answers import clean_model_answer
from affect.evaluate.errors import NothingToScoreError

Item = TypeVar("Item")

LABEL_PROMPT = (
    "You know human emotions well. The input holds clues to what people in a short video feel. Find the main person, "
    "the one whom most of the clues are about, and say which emotions this person has. Answer with a list in square "
    "brackets, its items separated by commas, and write nothing else. List only emotions that the clues clearly "
    "show; where they show none, answer with an empty list. "
    "Input: What she feels cannot be told; Output: [] "
    "Input: Her voice trembles, so she is worried, ashamed and tired; Output: [worried, ashamed, tired] "
    "Input: {text}; Output: "
)
SENTIMENT_PROMPT = (
    "You know human emotions well. The input is a list of words for what a person feels. Say whether they are "
    "positive, negative or neutral as a whole. Answer with one of these three words and write nothing else. "
    "Input: [cheerful]; Output: positive Input: []; Output: neutral Input: {text}; Output: "
)


def label_prompt(text: str) -> str:
    """Return the user turn that asks for the emotions in a text."""
    return LABEL_PROMPT.replace("{text}", text)


def sentiment_prompt(labels: str) -> str:
    """Return the user turn that asks for the sentiment of some labels."""
    return SENTIMENT_PROMPT.replace("{text}", labels)


def split_evenly(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Return the items in at most `parts` batches, all but the last of the same size.

    Raises NothingToScoreError when there is no item.
    """
    if not items:
        raise NothingToScoreError("nothing to divide into batches: expected at least one answer")
    size = math.ceil(len(items) / parts)
    return [items[start : start + size] for start in range(0, len(items), size)]


def batches(items: Sequence[Item], batch_size: int) -> list[Sequence[Item]]:
    """Return the items in as few batches of at most `batch_size` as possible, as even as they can be."""
    return split_evenly(items, math.ceil(len(items) / batch_size))


class LabelModel:
    """A language model that names the emotions in texts.

    `model` is a folder, a hub id or a name that `affect.core.weights` knows. Raises FileNotFoundError where
    the folder is missing, ValueError when it cannot be loaded.
    """

    def __init__(self, model: str | Path, device: str = "cpu", batch_size: int = 8, max_new_tokens: int = 512) -> None:
        self.name, self.batch_size = f"language model {model}", batch_size
        self._tokenizer = load_tokenizer(model, "label model")
        network = load_causal_lm(model, model_precision(device), self._tokenizer, role="label model")
        network.generation_config.max_new_tokens = max_new_tokens
        self._network = network.to(device).eval()

    def labels(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield the labels in each text as a list in one string: "[happy, sad]"."""
        for answer in self._ask([label_prompt(text) for text in texts]):
            yield "[]" if answer == "[" else answer  # a list that was cut off right away

    def sentiments(self, labels: Sequence[str]) -> Iterator[str]:
        """Yield what the model makes of each string of labels: positive, negative, neutral, or something else."""
        return self._ask([sentiment_prompt(text) for text in labels])

    def _ask(self, prompts: Sequence[str]) -> Iterator[str]:
        for batch in batches(prompts, self.batch_size) if prompts else []:
            asked = question_ids(self._tokenizer, [("", prompt) for prompt in batch], bare=True)
            for said in answers(self._network, self._tokenizer, asked, len(batch)):
                # without turns a model goes on with inputs of its own
                yield clean_model_answer(said if self._tokenizer.chat_template else said.partition("Input:")[0])
