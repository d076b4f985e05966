"""Answers by vLLM, for which a module of the same interface stands in: what it is given and what comes of it."""

import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from affect.answer.answerer import merged_folder
from affect.answer.setup import load_model
from affect.cli import answer as inference
from affect.data.config import ConfigError
from affect.engine.checkpoint import list_checkpoints
from toy_answers import answers_file, records, train_tiny
from toy_vllm import stand_in

VLLM = ["--options", "inference.backend=vllm", "inference.base_root={}/by_vllm"]


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in for the module; what it is given."""
    modules, given = stand_in()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return given


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
    assert len(vllm.engines) == 1
    assert vllm.engines[0]["enable_prompt_embeds"] and not vllm.engines[0]["trust_remote_code"]
    assert all(sampling.temperature == 0 for _, sampling, _ in vllm.calls)
    assert len(list((tmp_path / "run").glob("merged-*"))) == 1


def test_merged_weights_are_those_of_one_base(tiny_world, tmp_path, tiny_llm):
    """The same checkpoint on a language model of other weights is merged anew, into another folder."""
    checkpoint = list_checkpoints(train_tiny(tiny_world, tmp_path).parent / "run")[-1]
    other = tmp_path / "other"
    shutil.copytree(tiny_llm, other)
    network = AutoModelForCausalLM.from_pretrained(tiny_llm)
    network.lm_head.weight.data += 1.0
    network.save_pretrained(other)
    folders = []
    for base in (tiny_llm, other, tiny_llm):
        tiny_world.model.llama_model = str(base)
        tiny_world.inference.backend = "vllm"  # the adapter is not merged before
        folders.append(merged_folder(load_model(tiny_world, checkpoint), checkpoint))
    assert folders[0] == folders[2] != folders[1]
    heads = [AutoModelForCausalLM.from_pretrained(folder).lm_head.weight for folder in folders[:2]]
    torch.testing.assert_close(heads[1] - heads[0], torch.ones_like(heads[0]))


def test_it_is_not_started_where_all_is_answered(tiny_world, tmp_path, vllm):
    file = train_tiny(tiny_world, tmp_path)
    for _ in range(2):
        inference.main(["--cfg-path", str(file), *[text.format(tmp_path) for text in VLLM]])
    assert len(vllm.engines) == 1


def test_what_it_cannot_do_is_one_sentence(tiny_world, tmp_path, monkeypatch):
    file = train_tiny(tiny_world, tmp_path, epochs=2)
    options = [text.format(tmp_path) for text in VLLM]
    with pytest.raises(ConfigError, match="backend vllm answers with one checkpoint, found 2"):
        inference.main(["--cfg-path", str(file), "--test_epochs", "1-2", *options])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="needs the package vllm, which is not installed"):
        inference.main(["--cfg-path", str(file), *options])
