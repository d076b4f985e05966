"""Fixtures of the image track's tests."""

import pytest

import affect.fer.train


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures of a run, which take longer than the run."""
    monkeypatch.setattr(affect.fer.train, "draw_confusion", lambda *arguments: None)
    monkeypatch.setattr(affect.fer.train, "draw_scores", lambda *arguments: None)
    monkeypatch.setattr(affect.fer.train.TrainingVisualizer, "plot_and_save", lambda *arguments: None)
