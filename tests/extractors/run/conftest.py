"""Clips for the driver, and the processes that read them."""

import pytest

from extractors.run.session import Settings
from extractors.run.workers import ClipWorkers
from toy_clips import write_clips
from toy_driver import POOL


@pytest.fixture(scope="module")
def workers():
    """One pool for all tests of a module: starting it takes longer than they do."""
    with ClipWorkers(count=1, time_limit=60) as pool:
        POOL[:] = [pool]
        yield


@pytest.fixture
def sources(tmp_path, workers):
    """Clips a, b and c: video without sound, wav, OpenFace table; the table of c has no face."""
    folders = write_clips(tmp_path, list("abc"), faceless="c")
    roots = {f"{kind}_root": folder for kind, folder in folders.items()}
    return Settings(dataset="toy", au_root=tmp_path / "au", **roots)
