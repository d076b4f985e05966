"""The LLM makers of AU sentences: any causal language model of Hugging Face form, with an optional PEFT adapter."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from affect.core.au_json import AuAnalysis
from affect.core.causal_lm import answers, find_weights, load_causal_lm, load_tokenizer
from affect.core.conversation import SYSTEM, exchange, question_ids
from affect.core.device import model_precision
from affect.core.vllm_engine import VllmEngine, import_vllm
from extractors.au import templates
from extractors.au.templates import ActiveAus, Clips, frame_prompt

_ROLE = "AU agent"


def build_agent(
    model: str | Path, adapter: str | Path | None = None, device: str = "cpu", backend: str = "hf", **settings: Any
) -> Agent:
    """Return a language model that describes clips, loaded once: build it once a process and keep it.

    `backend` is hf (`AuAgent`) or vllm (`VllmAgent`); `settings` are those of its class.
    Raises ValueError for another backend, ImportError where vllm is not installed, and what the classes raise.
    """
    agents = {"hf": AuAgent, "vllm": VllmAgent}
    if backend not in agents:
        raise ValueError(f"AU agent: backend {backend!r} is unknown: expected hf or vllm; correct it")
    return agents[backend](model, adapter, device, **settings)


class Agent(ABC):
    """What the backends share: active AUs to prompts, prompts to answers, answers to sentences of clips.

    `model` is a folder, a hub id or a name that `affect.core.weights` knows; `adapter` the same for a PEFT adapter.
    Decoding is greedy, whatever the model's own settings are. So answers depend on the prompt alone, equal prompts are
    asked once, and those of the last call are remembered: clips that are tried again one by one, because one among
    them failed, cost nothing new. Raises FileNotFoundError where a folder of weights is missing, ValueError where it
    holds something else or a hub id cannot be loaded.
    """

    def __init__(self, model: str | Path, adapter: str | Path | None, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"AU agent: max_new_tokens is {max_new_tokens}, expected at least 1; change the settings")
        self.made_by = f"language model {model}" + (f" with adapter {adapter}" if adapter else "")
        self.max_new_tokens = max_new_tokens
        self._answered: dict[str, str] = {}
        self.tokenizer = load_tokenizer(model, _ROLE)

    def describe_clips(self, clips: Clips) -> list[AuAnalysis]:
        """Return the analyses with this model's sentences, as `extractors.au.templates.describe_clips` says."""
        return templates.describe_clips(clips, self.describe, self.made_by)

    def describe(self, frames: list[ActiveAus]) -> list[tuple[str, str]]:
        """Return (whole exchange, answer alone) of each frame's active AUs."""
        prompts = [frame_prompt(active) for active in frames]
        said = self._decode(prompts)
        return [(exchange(prompt, answer, SYSTEM), answer) for prompt, answer in zip(prompts, said, strict=True)]

    @abstractmethod
    def _generate(self, prompts: list[list[int]]) -> Iterable[str]:
        """Return what the model says to each prompt, given as token ids."""

    def _decode(self, prompts: list[str]) -> list[str]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answered]
        if new:
            self._answered = {prompt: self._answered[prompt] for prompt in prompts if prompt in self._answered}
            for i, answer in self._answers(new):
                self._answered[new[i]] = answer
        return [self._answered[prompt] for prompt in prompts]

    def _answers(self, prompts: list[str]) -> Iterator[tuple[int, str]]:
        """Yield place and answer of each prompt, the longest first: too little memory shows at once."""
        ids = question_ids(self.tokenizer, [(SYSTEM, prompt) for prompt in prompts])
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        for i, text in zip(order, self._generate([ids[i] for i in order]), strict=True):
            yield i, _first_turn(text)


class AuAgent(Agent):
    """An `Agent` that runs in this process through transformers: bfloat16 on a GPU that has it, else float32."""

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 8,
        max_new_tokens: int = 128,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"AU agent: batch_size is {batch_size}, expected at least 1; change the settings")
        super().__init__(model, adapter, max_new_tokens)
        self.batch_size = batch_size
        network = load_causal_lm(model, model_precision(device), self.tokenizer, adapter, _ROLE)
        network.generation_config.max_new_tokens = max_new_tokens
        self.model = network.to(device).eval()

    def _generate(self, prompts: list[list[int]]) -> Iterator[str]:
        return answers(self.model, self.tokenizer, prompts, self.batch_size)


class VllmAgent(Agent):
    """An `Agent` that runs on vLLM, whose settings `engine` are; raises ValueError for a device that it cannot use."""

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        device: str = "cuda",
        max_new_tokens: int = 128,
        **engine: Any,
    ) -> None:
        vllm = import_vllm("AU agent: backend")
        if device not in ("cuda", "cuda:0"):
            raise ValueError(
                f"AU agent: device is {device!r}, but vllm takes the first GPU that it sees: expected cuda; choose the "
                "GPU with CUDA_VISIBLE_DEVICES, or use backend hf"
            )
        super().__init__(model, adapter, max_new_tokens)
        lora = find_weights(adapter, f"{_ROLE}, adapter") if adapter else None
        self._engine = VllmEngine(vllm, find_weights(model, _ROLE), _ROLE, lora, **engine)

    def _generate(self, prompts: list[list[int]]) -> list[str]:
        return self._engine.answers(prompts, self.max_new_tokens)


def _first_turn(text: str) -> str:
    """Return an answer without further turns that a model made up for itself."""
    return re.split(r"\n(?:system|user|assistant)\n", text)[0].strip()
