"""Answers by vLLM, for which a module of the same interface stands in: what it is given and what comes of it."""

import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect.cli import answer as inference
from affect.data.config import ConfigError
from toy_answers import answers_file, records, train_tiny

VLLM = ["--options", "inference.backend=vllm", "inference.base_root={}/by_vllm"]


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    """Decodes greedily, one prompt after the other, from the folder that it is given."""

    started: ClassVar[list] = []

    def __init__(self, model: str, enable_prompt_embeds: bool, max_model_len: int) -> None:
        assert enable_prompt_embeds
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.longest = max_model_len
        LLM.started.append(self)

    def generate(self, prompts, sampling, use_tqdm):
        assert not use_tqdm
        assert sampling.temperature == 0
        for prompt in prompts:
            embeddings = prompt["prompt_embeds"]
            assert len(embeddings) + sampling.max_tokens <= self.longest
            made = self.model.generate(
                inputs_embeds=embeddings[None],
                attention_mask=torch.ones(1, len(embeddings), dtype=torch.long),
                max_new_tokens=sampling.max_tokens,
                do_sample=False,
                eos_token_id=sampling.stop_token_ids,
                pad_token_id=0,
            )
            text = self.tokenizer.decode(made[0], skip_special_tokens=True)
            yield SimpleNamespace(outputs=[SimpleNamespace(text=text)])


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "started", [])
    return module


def test_its_answers_are_those_of_transformers(tiny_world, tmp_path, vllm):
    tiny_world.run.init_lr = 0.5  # so that the adapter counts
    file = train_tiny(tiny_world, tmp_path)
    inference.main(["--cfg-path", str(file)])
    options = [text.format(tmp_path) for text in VLLM]
    inference.main(["--cfg-path", str(file), *options])
    expected = {record["name"]: record["answer"] for record in records(answers_file(tmp_path))}
    (made,) = (tmp_path / "by_vllm-toy/run").glob("*.jsonl")
    assert {record["name"]: record["answer"] for record in records(made)} == expected
    assert any(expected.values())
    assert len(LLM.started) == 1
    assert len(list((tmp_path / "run").glob("merged-*"))) == 1


def test_it_is_not_started_where_all_is_answered(tiny_world, tmp_path, vllm):
    file = train_tiny(tiny_world, tmp_path)
    for _ in range(2):
        inference.main(["--cfg-path", str(file), *[text.format(tmp_path) for text in VLLM]])
    assert len(LLM.started) == 1


def test_what_it_cannot_do_is_one_sentence(tiny_world, tmp_path, monkeypatch):
    file = train_tiny(tiny_world, tmp_path, epochs=2)
    options = [text.format(tmp_path) for text in VLLM]
    with pytest.raises(ConfigError, match="backend vllm answers with one checkpoint, found 2"):
        inference.main(["--cfg-path", str(file), "--test_epochs", "1-2", *options])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="needs the package vllm, which is not installed"):
        inference.main(["--cfg-path", str(file), *options])
