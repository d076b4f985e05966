"""Tiny language models that describe faces."""

import shutil

import pytest
import torch
from toy_agent import TEMPLATE, with_template
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def plain_llm(tiny_llm, tmp_path_factory):
    """Folder of a tiny language model without a chat template, whose weights are large enough to heed the prompt."""
    folder = tmp_path_factory.mktemp("plain") / "llm"
    shutil.copytree(tiny_llm, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(2)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_llm(plain_llm, tmp_path_factory):
    """The same model with a chat template."""
    return with_template(plain_llm, tmp_path_factory.mktemp("chat") / "llm", TEMPLATE)
