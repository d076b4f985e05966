"""Runs of the image track that tests start and look at: small pictures whose class shows, and how runs end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from affect.cli import train
from affect.engine.checkpoint import TrainState, find_checkpoint, read_state
from affect.engine.metrics import read_metrics
from affect.engine.trainer import AVERAGED
from affect.expressions.network_file import read_card

ROOT = Path(__file__).parents[1]
CLASSES = ("anger", "happiness", "neutral")


def write_pictures(folder: Path, counts: dict[str, int], classes=CLASSES, size: int = 24) -> Path:
    """Write {folder}/{split}/{class}/{n}.png: noise with a bright square whose place tells the class."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (size, size, 3), np.uint8)
                row, column = divmod(label, 3)
                pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def write_config(path: Path, **sections) -> Path:
    """Write a small run: the compact network at a quarter of its width, three classes, two steps an epoch."""
    content = {
        "task": "fer",
        "model": {"arch": "compact", "width": 0.25, "img_size": 24, "channels_last": False},
        "images": {"data_root": str(path.parent / "pictures"), "crop": 0.2, "mixup": 0.4, "random_erasing": 0.3},
        "run": {
            "epochs": 3,
            "batch_size": 6,
            "lr": 0.01,
            "num_workers": 0,
            "device": "cpu",
            "log_every": 1,
            "output_dir": str(path.parent / path.stem),
        },
    }
    for name, section in sections.items():
        content[name] |= section
    if not (path.parent / "pictures").is_dir() and content["images"]["data_root"].startswith(str(path.parent)):
        write_pictures(path.parent / "pictures", {"train": 5, "val": 3})
    path.write_text(yaml.safe_dump(content))
    return path


def run(path: Path, *options: str) -> int:
    """Train in this process and return the exit code."""
    return train.main(["--cfg-path", str(path), *(["--options", *options] if options else [])])


def history(folder: Path) -> list[dict]:
    """Return the entries of a run."""
    return json.loads((folder / "history.json").read_text())


def state(folder: Path) -> TrainState:
    """Return where a run is."""
    return read_state(find_checkpoint(folder))


def losses(folder: Path) -> list[float]:
    """Return the loss of every step of a run."""
    return [step["loss"] for step in read_metrics(folder)[0]]


def moments(folder: Path) -> dict:
    """Return the optimizer's state."""
    return torch.load(find_checkpoint(folder) / "optimizer.pt", weights_only=True)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Hold that two runs end in the same history, losses, weights, moments and average, to the last bit."""
    assert history(ours) == history(theirs)
    assert losses(ours) == losses(theirs)
    assert state(ours) == state(theirs)
    assert_same(moments(ours), moments(theirs), "optimizer")
    for name in ("best.safetensors", "last.safetensors"):
        assert_same_network(ours / name, theirs / name)
    one, two = (find_checkpoint(folder) / AVERAGED for folder in (ours, theirs))
    assert one.is_file() == two.is_file()
    if one.is_file():  # last.safetensors holds the average then
        assert_same(load_file(one), load_file(two), AVERAGED)


def assert_same_network(ours: Path, theirs: Path) -> None:
    """Hold that two files have the same card and weights (the order of a header's entries varies)."""
    assert read_card(ours) == read_card(theirs)
    assert_same(load_file(ours), load_file(theirs), ours.name)


def assert_same(one, two, where: str) -> None:
    """Hold that nested values are equal to the bit."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    else:
        assert one == two, where


def kill_at(path: Path, line: str) -> None:
    """Train in a process of its own and send it SIGKILL when it has logged a line that starts so."""
    command = [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums depend on it
    )
    lines = []
    for found in process.stdout:
        lines.append(found)
        if found.startswith(line):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, "".join(lines)
