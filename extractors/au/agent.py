"""The LLM makers of AU sentences: any causal language model of Hugging Face form, with an optional PEFT adapter."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from affect.core.au_json import AuAnalysis
from affect.core.conversation import SYSTEM, exchange, question_ids, stop_tokens
from affect.core.weights import resolve_weights
from extractors.au import templates
from extractors.au.templates import ActiveAus, Clips, frame_prompt


def build_agent(
    model: str | Path, adapter: str | Path | None = None, device: str = "cpu", backend: str = "hf", **settings: Any
) -> Agent:
    """Return a language model that describes clips, loaded once: build it once a process and keep it.

    `backend` is hf (`AuAgent`) or vllm (`extractors.au.agent_vllm.VllmAgent`); `settings` are those of its class.
    Raises ValueError for another backend, ImportError where vllm is not installed, and what the classes raise.
    """
    if backend == "hf":
        return AuAgent(model, adapter, device, **settings)
    if backend != "vllm":
        raise ValueError(f"AU agent: backend {backend!r} is unknown: expected hf or vllm; correct it")
    try:
        from extractors.au.agent_vllm import VllmAgent
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ImportError(
            "AU agent: backend vllm needs the package vllm, which is not installed; install affect[vllm], or use "
            "backend hf"
        ) from None
    return VllmAgent(model, adapter, device, **settings)


class Agent(ABC):
    """What the backends share: active AUs to prompts, prompts to answers, answers to sentences of clips.

    `model` is a folder, a hub id or a name that `affect.core.weights` knows; `adapter` the same for a PEFT adapter.
    Decoding is greedy unless `do_sample`, and then follows the model's own settings. Greedy answers depend on
    the prompt alone, so equal prompts are asked once, and those of the last call are remembered: clips that are
    tried again one by one, because one among them failed, cost nothing new. Raises FileNotFoundError where a
    folder of weights is missing, ValueError where it holds something else or a hub id cannot be loaded.
    """

    def __init__(self, model: str | Path, adapter: str | Path | None, max_new_tokens: int, do_sample: bool) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"AU agent: max_new_tokens is {max_new_tokens}, expected at least 1; change the settings")
        self.made_by = f"language model {model}" + (f" with adapter {adapter}" if adapter else "")
        self.do_sample = do_sample
        self.model_source = _find(model, "model")
        self.adapter_source = _find(adapter, "adapter") if adapter else None
        self._answered: dict[str, str] = {}
        with self._loading():
            self.tokenizer = AutoTokenizer.from_pretrained(self.model_source)

    def describe_clips(self, clips: Clips) -> list[AuAnalysis]:
        """Return the analyses with this model's sentences, as `extractors.au.templates.describe_clips` says."""
        return templates.describe_clips(clips, self.describe, self.made_by)

    def describe_clip(self, analysis: AuAnalysis, frame_indices: Sequence[int]) -> AuAnalysis:
        """Return what `describe_clips` makes of one clip."""
        return self.describe_clips([(analysis, frame_indices)])[0]

    def describe(self, frames: list[ActiveAus]) -> list[tuple[str, str]]:
        """Return (whole exchange, answer alone) of each frame's active AUs."""
        prompts = [frame_prompt(active) for active in frames]
        answers = self._sample(prompts) if self.do_sample else self._decode_greedily(prompts)
        return [(exchange(prompt, answer, SYSTEM), answer) for prompt, answer in zip(prompts, answers, strict=True)]

    @abstractmethod
    def _generate(self, prompts: list[list[int]]) -> Iterator[str]:
        """Yield what the model says to each prompt, given as token ids."""

    def _decode_greedily(self, prompts: list[str]) -> list[str]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answered]
        if new:
            self._answered = {prompt: self._answered[prompt] for prompt in prompts if prompt in self._answered}
            for i, answer in self._answers(new):
                self._answered[new[i]] = answer
        return [self._answered[prompt] for prompt in prompts]

    def _sample(self, prompts: list[str]) -> list[str]:
        return [answer for _, answer in sorted(self._answers(prompts))]

    def _answers(self, prompts: list[str]) -> Iterator[tuple[int, str]]:
        """Yield place and answer of each prompt, the longest first: too little memory shows at once."""
        ids = question_ids(self.tokenizer, [(SYSTEM, prompt) for prompt in prompts])
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        for i, text in zip(order, self._generate([ids[i] for i in order]), strict=True):
            yield i, _first_turn(text)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Turn what loaders raise into one sentence."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"AU agent: {self.made_by} cannot be loaded ({reason}); expected folders as save_pretrained writes "
                "them, or hub ids that this machine can fetch"
            ) from error


class AuAgent(Agent):
    """An `Agent` that runs in this process through transformers: bfloat16 on a GPU, float32 elsewhere."""

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 8,
        max_new_tokens: int = 128,
        do_sample: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"AU agent: batch_size is {batch_size}, expected at least 1; change the settings")
        super().__init__(model, adapter, max_new_tokens, do_sample)
        self.batch_size = batch_size
        self.device = torch.device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with self._loading():
            network = AutoModelForCausalLM.from_pretrained(self.model_source, dtype=dtype)
            self._set_generation(network, max_new_tokens)
            if self.adapter_source:
                network = PeftModel.from_pretrained(network, self.adapter_source)
        self.model = network.to(self.device).eval()

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]]) -> Iterator[str]:
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            width = max(map(len, batch))
            # answers follow their prompts, so the padding goes before them; it is masked, and any token will do
            ids = torch.tensor([[0] * (width - len(row)) + row for row in batch], device=self.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=self.device)
            made = self.model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
            # after its stop an answer is filled up to the longest of its batch
            answers = [list(takewhile(lambda token: token not in self._stops, row)) for row in made]
            yield from self.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _set_generation(self, network: PreTrainedModel, max_new_tokens: int) -> None:
        """Make the model stop where model or tokenizer says, and greedy decoding free of other settings."""
        own = network.generation_config
        self._stops = stop_tokens(self.tokenizer, own)
        network.generation_config = own if self.do_sample else GenerationConfig()
        network.generation_config.update(
            max_new_tokens=max_new_tokens,
            do_sample=self.do_sample,
            eos_token_id=self._stops or None,
            pad_token_id=self._stops[0] if self._stops else None,
        )


def _find(name: str | Path, what: str) -> str:
    """Return the folder or hub id that stands behind a name; only `name` and `owner/name` can be hub ids."""
    source = resolve_weights(str(name))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise FileNotFoundError(
            f"AU agent: the {what} folder {path} does not exist; expected weights as save_pretrained writes them, "
            "so correct the path or set another one"
        )
    return source


def _first_turn(text: str) -> str:
    """Return an answer without further turns that a model made up for itself."""
    return re.split(r"\n(?:system|user|assistant)\n", text)[0].strip()
