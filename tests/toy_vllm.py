"""A stand-in for the package vllm that answers greedily through transformers and keeps what it was given."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def stand_in() -> tuple[dict[str, ModuleType], SimpleNamespace]:
    """Return the modules by name, and what they are given: settings of every engine started, and calls."""
    given = SimpleNamespace(engines=[], calls=[])

    class LLM:
        def __init__(self, model: str, **settings) -> None:
            given.engines.append(settings)
            self.longest = settings.get("max_model_len", 10_000)
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

        def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
            assert not use_tqdm
            given.calls.append((prompts, sampling_params, lora_request))
            return [SimpleNamespace(outputs=[SimpleNamespace(text=self.answer(p, sampling_params))]) for p in prompts]

        def answer(self, prompt, sampling) -> str:
            if "prompt_embeds" in prompt:
                asked, width = {"inputs_embeds": prompt["prompt_embeds"][None]}, len(prompt["prompt_embeds"])
            else:
                asked, width = (
                    {"input_ids": torch.tensor([prompt["prompt_token_ids"]])},
                    len(prompt["prompt_token_ids"]),
                )
            assert width + sampling.max_tokens <= self.longest
            made = self.model.generate(
                **asked,
                attention_mask=torch.ones(1, width, dtype=torch.long),
                do_sample=False,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=getattr(sampling, "stop_token_ids", None) or self.model.generation_config.eos_token_id,
                pad_token_id=0,
            )[0]
            return self.tokenizer.decode(made[width:] if "input_ids" in asked else made, skip_special_tokens=True)

    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    request.LoRARequest = lambda name, number, path: (name, number, path)
    return {part.__name__: part for part in (module, lora, request)}, given
