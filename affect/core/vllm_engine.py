"""Causal language models on vLLM (extra `vllm`), on the first GPU that the process sees.

vLLM forms its own batches as answers end (Kwon et al., "Efficient Memory Management for Large Language Model Serving
with PagedAttention", 2023, arXiv:2309.06180), so it needs no batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from affect.core.causal_lm import adapter_rank, one_sentence

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest LoRA ranks that vLLM can be set to."""


def import_vllm(setting: str) -> ModuleType:
    """Return the package vllm; raises ImportError naming the setting that asks for it where it is not installed."""
    try:
        return import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ImportError(
            f"{setting} vllm needs the package vllm, which is not installed; install affect[vllm], or use backend hf"
        ) from None


class VllmEngine:
    """A language model, with a PEFT adapter where one is given, that answers prompts.

    `settings` are those of `vllm.LLM`, such as gpu_memory_utilization (0.9 unless given: leave room for encoders on the
    same GPU) or max_model_len. Raises ValueError, beginning with `role`, for weights that cannot be loaded.
    """

    def __init__(self, vllm: ModuleType, model: str, role: str, adapter: str | None = None, **settings: Any) -> None:
        self._vllm, self._lora = vllm, None
        if adapter:
            with one_sentence(f"{role}, adapter", adapter):
                settings = {"enable_lora": True, "max_lora_rank": _largest_rank(adapter), **settings}
            self._lora = import_module("vllm.lora.request").LoRARequest("adapter", 1, adapter)
        with one_sentence(role, model):
            self._llm = vllm.LLM(model=model, trust_remote_code=False, **settings)

    def answers(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        max_new_tokens: int,
        **sampling: Any,
    ) -> list[str]:
        """Return what the model says to each prompt, given as token ids or as embeddings [L, E].

        Greedily, unless `sampling` (as vllm.SamplingParams takes it) says otherwise. vLLM itself adds the end tokens of
        model and tokenizer.
        """
        chosen = self._vllm.SamplingParams(**{"temperature": 0.0, "max_tokens": max_new_tokens, **sampling})
        given = [
            {"prompt_embeds": prompt.cpu()} if isinstance(prompt, Tensor) else {"prompt_token_ids": list(prompt)}
            for prompt in prompts
        ]
        outputs = self._llm.generate(given, chosen, lora_request=self._lora, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


def _largest_rank(adapter: str) -> int:
    """Return the setting of vLLM that holds the largest rank of an adapter."""
    rank = adapter_rank(adapter)
    return next((allowed for allowed in _RANKS if allowed >= rank), rank)
