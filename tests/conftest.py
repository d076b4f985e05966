"""Fixtures that every test may use: real data where it is, and a tiny trained-from-nothing world."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.pop("AFFECT_MEDIAPIPE_PYTHON", None)  # no test may depend on what finds faces on this machine

import pytest
import torch
from transformers import AutoModelForCausalLM

import affect.engine.loop
import affect.tasks.expressions as expressions_task
from affect.data.config import Config
from tiny_world import save_tiny_llm, save_tiny_world
from toy_agent import TEMPLATE, with_template

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real clips, tables and reference numbers that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with real data is not beside this checkout")
    return SHARED


@pytest.fixture
def mediapipe(monkeypatch) -> None:
    """The environment of mediapipe that `make mediapipe` puts beside this one."""
    python = Path(f"{sys.prefix}-mediapipe/bin/python")
    if not python.is_file():
        pytest.skip(f"{python} is not there: make mediapipe")
    monkeypatch.setenv("AFFECT_MEDIAPIPE_PYTHON", str(python))


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    """Folder of a tiny random language model in the true Hugging Face format."""
    corpus = ["What does this person feel? The lip corners are pulled up, so the person feels happy."] * 4
    return save_tiny_llm(tmp_path_factory.mktemp("llm"), corpus)


@pytest.fixture
def tiny_world(tmp_path, tiny_llm) -> Config:
    """Configuration of a small run over twelve clips with stored features; clip c3 has no face, c4 no sound."""
    return save_tiny_world(tmp_path, tiny_llm)


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


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures of a run, which take longer than the run."""
    monkeypatch.setattr(expressions_task, "draw_confusion", lambda *arguments: None)
    monkeypatch.setattr(expressions_task, "draw_scores", lambda *arguments: None)
    monkeypatch.setattr(affect.engine.loop, "draw_epoch", lambda *arguments: None)
