"""The LLM maker of AU sentences on vLLM (extra `vllm`): the same prompts and answers as `AuAgent`, on a GPU only.

vLLM forms its own batches as answers end (Kwon et al., "Efficient Memory Management for Large Language Model
Serving with PagedAttention", 2023, arXiv:2309.06180), so it needs no batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftConfig
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from extractors.au.agent import Agent

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest LoRA ranks that vLLM can be set to."""


class VllmAgent(Agent):
    """An `Agent` that runs on vLLM, on the first GPU that the process sees.

    `engine` are settings of `vllm.LLM`, such as gpu_memory_utilization (0.9 unless given: leave room for
    encoders on the same GPU) or max_model_len. Raises ValueError for a device that it cannot run on.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        device: str = "cuda",
        max_new_tokens: int = 128,
        do_sample: bool = False,
        **engine: Any,
    ) -> None:
        if device not in ("cuda", "cuda:0"):
            raise ValueError(
                f"AU agent: device is {device!r}, but vllm takes the first GPU that it sees: expected cuda; choose the "
                "GPU with CUDA_VISIBLE_DEVICES, or use backend hf"
            )
        super().__init__(model, adapter, max_new_tokens, do_sample)
        with self._loading():
            if self.adapter_source:
                engine = {"enable_lora": True, "max_lora_rank": _largest_rank(self.adapter_source), **engine}
            self._engine = LLM(model=self.model_source, **engine)
        self._adapter = LoRARequest("au_agent", 1, self.adapter_source) if self.adapter_source else None
        # vllm itself adds the end tokens of model and tokenizer
        self._sampling = self._engine.get_default_sampling_params() if do_sample else SamplingParams(temperature=0.0)
        self._sampling.max_tokens = max_new_tokens

    def _generate(self, prompts: list[list[int]]) -> Iterator[str]:
        outputs = self._engine.generate(
            [{"prompt_token_ids": ids} for ids in prompts], self._sampling, lora_request=self._adapter, use_tqdm=False
        )
        for output in outputs:
            yield output.outputs[0].text


def _largest_rank(adapter: str) -> int:
    """Return the setting of vLLM that holds the largest rank of an adapter."""
    config = PeftConfig.from_pretrained(adapter)
    rank = max([config.r, *config.rank_pattern.values()])
    return next((allowed for allowed in _RANKS if allowed >= rank), rank)
