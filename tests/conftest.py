"""Fixtures that every test may use: real data where it is, and a tiny trained-from-nothing world."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

import pytest
from tiny_world import save_tiny_llm, save_tiny_world

from affect.config import Config

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real clips, tables and reference numbers that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with real data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    """Folder of a tiny random language model in the true Hugging Face format."""
    corpus = ["What does this person feel? The lip corners are pulled up, so the person feels happy."] * 4
    return save_tiny_llm(tmp_path_factory.mktemp("llm"), corpus)


@pytest.fixture
def tiny_world(tmp_path, tiny_llm) -> Config:
    """Configuration of a small run over twelve clips with stored features; clip c3 has no face, c4 no sound."""
    return save_tiny_world(tmp_path, tiny_llm)
