"""How a language model is asked to describe a face: the same when it is tuned and when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = (
    "You describe faces as an anatomist would. Say in one or two sentences which facial muscles move, how "
    "strongly and in which part of the face, using only the action units that are given; an intensity of 1 is "
    "a trace and 5 the maximum. Do not name, guess or hint at any emotion, mood, attitude or intention."
)
"""System turn of every language model that describes faces, when it is tuned and when it is used."""

COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
"""What a field of tuning records is for -> its name, unless dataset_info.json says otherwise (LLaMA-Factory)."""

Question = tuple[str, str]
"""System turn and user turn."""


def exchange(prompt: str, answer: str, system: str = "") -> str:
    """Return the turns of a conversation as one text, the answer last."""
    turns = [("system", system)] if system else []
    return "\n".join(f"{role}\n{text}" for role, text in [*turns, ("user", prompt), ("assistant", answer)])


def question_ids(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], bare: bool = False
) -> list[list[int]]:
    """Return the token ids of each question up to where its answer starts, in the model's chat form if it has one.

    bare: a model without a chat form gets the user turn as it is, without the name of a speaker.
    """
    if not questions:
        return []
    templated = tokenizer.chat_template is not None
    texts = [
        _chat_form(tokenizer, system, prompt) if templated else prompt if bare else exchange(prompt, "", system)
        for system, prompt in questions
    ]
    # a template writes its own special tokens
    return tokenizer(texts, add_special_tokens=not templated)["input_ids"]


def _chat_form(tokenizer: PreTrainedTokenizerBase, system: str, prompt: str) -> str:
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    user = {"role": "user", "content": prompt}
    if not system:
        return tokenizer.apply_chat_template([user], **settings)
    try:
        return tokenizer.apply_chat_template([{"role": "system", "content": system}, user], **settings)
    except TemplateError:  # some templates know no system turn
        return tokenizer.apply_chat_template([{"role": "user", "content": f"{system}\n{prompt}"}], **settings)
