"""The LLM maker of AU sentences: any causal language model of Hugging Face form, with an optional PEFT adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from affect.au_json import AuAnalysis
from affect.weights import resolve_weights
from extractors import au_text
from extractors.au_text import ActiveAus, exchange, frame_prompt

SYSTEM = (
    "You describe faces as an anatomist would. Say in one or two sentences which facial muscles move, how "
    "strongly and in which part of the face, using only the action units that are given; an intensity of 1 is "
    "a trace and 5 the maximum. Do not name, guess or hint at any emotion, mood, attitude or intention."
)


class AuAgent:
    """A language model that turns active AUs into sentences.

    `model` is a folder, a hub id or a name that `affect.weights` knows; `adapter` the same for a PEFT adapter.
    Runs in bfloat16 on a GPU, in float32 elsewhere; decodes greedily unless `do_sample`, and then with the
    model's own temperature. Raises FileNotFoundError where a folder of weights is missing, ValueError where
    it holds something else or a hub id cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 8,
        max_new_tokens: int = 128,
        do_sample: bool = False,
    ) -> None:
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(
                f"AU agent: batch_size is {batch_size} and max_new_tokens {max_new_tokens}, expected at least 1 of "
                "each; change the settings"
            )
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.made_by = f"language model {model}" + (f" with adapter {adapter}" if adapter else "")
        folder = _find(model, "model")
        adapter_folder = _find(adapter, "adapter") if adapter else None
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            # transformers 5 forgets padding_side unless the constructor gets it
            self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            self._pad(network)
            self._set_generation(network, max_new_tokens, do_sample)
            if adapter_folder:
                network = PeftModel.from_pretrained(network, adapter_folder)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"AU agent: {self.made_by} cannot be loaded ({reason}); expected folders as save_pretrained writes "
                "them, or hub ids that this machine can fetch"
            ) from error
        self.model = network.to(self.device).eval()

    def describe(self, frames: list[ActiveAus]) -> list[tuple[str, str]]:
        """Return (whole exchange, answer alone) of each frame's active AUs."""
        prompts = [frame_prompt(active) for active in frames]
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            answers += self._answer(prompts[start : start + self.batch_size])
        return [(exchange(prompt, answer, SYSTEM), answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def describe_clip(self, analysis: AuAnalysis, frame_indices: Sequence[int]) -> AuAnalysis:
        """Return the analysis with this model's sentences, as `extractors.au_text.describe_clip` says."""
        return au_text.describe_clip(analysis, frame_indices, self.describe, self.made_by)

    @torch.inference_mode()
    def _answer(self, prompts: list[str]) -> list[str]:
        """Return what the model says to each prompt, all in one batch."""
        templated = self.tokenizer.chat_template is not None
        texts = [self._conversation(prompt) if templated else _plain(prompt) for prompt in prompts]
        # a template writes its own special tokens
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not templated)
        ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)
        made = self.model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :]
        return [_first_turn(text) for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]

    def _conversation(self, prompt: str) -> str:
        """Return a prompt in the model's own chat form, up to where its answer starts."""
        settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            return self.tokenizer.apply_chat_template(turns, **settings)
        except TemplateError:  # some templates know no system turn
            turns = [{"role": "user", "content": f"{SYSTEM}\n{prompt}"}]
            return self.tokenizer.apply_chat_template(turns, **settings)

    def _pad(self, network: PreTrainedModel) -> None:
        """Give the tokenizer a padding token that the model knows; it is masked, so any will do."""
        known = network.get_input_embeddings().num_embeddings
        if self.tokenizer.pad_token is None or self.tokenizer.pad_token_id >= known:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)

    def _set_generation(self, network: PreTrainedModel, max_new_tokens: int, do_sample: bool) -> None:
        """Make the model stop where model or tokenizer says, and greedy decoding free of other settings."""
        own = network.generation_config
        stops = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        stops = sorted({stop for stop in (*stops, self.tokenizer.eos_token_id) if stop is not None})
        network.generation_config = own if do_sample else GenerationConfig()
        network.generation_config.update(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            eos_token_id=stops or None,
            pad_token_id=self.tokenizer.pad_token_id,
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


def _plain(prompt: str) -> str:
    """Return a prompt for a model without a chat template, up to where its answer starts."""
    return exchange(prompt, "", SYSTEM)


def _first_turn(text: str) -> str:
    """Return an answer without further turns that a model made up for itself."""
    return re.split(r"\n(?:system|user|assistant)\n", text)[0].strip()
