"""SIGKILL at random moments of every command: nothing is lost or done twice, and the end is equal to the bit.

AFFECT_KILLS=150 python -m pytest -m long -s tests/test_kills.py --basetemp=/dev/shm/kills
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from affect.cli import train
from affect.data.config import Config, save_config
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.features.store import FeatureStore
from fer_runs import write_config, write_pictures
from killed import kill_again_and_again
from toy_clips import write_clips
from toy_store import SPECS, files, rows

pytestmark = pytest.mark.long
CLOCKED = {"samples_per_s", "tokens_per_s", "memory_mib"}
"""Keys of metrics.jsonl that differ from run to run."""


def no_litter(root: Path) -> None:
    assert not list(root.rglob(".unfinished-*"))


def test_extraction(tmp_path):
    folders = write_clips(tmp_path / "clips", [f"clip {i}" for i in range(10)], faceless="clip 3")
    encoders = ["--visual_encoder=DCT", "--acoustic_encoder=PROSODY", "--au_encoder=HASHED_NGRAMS", "--no-progress"]
    born: dict[Path, int] = {}

    def arguments(root: Path) -> list[str]:
        places = [f"--{kind}_root={folder}" for kind, folder in folders.items()]
        return ["extract", "--dataset=toy", *places, f"--save_root={root}", *encoders]

    def made(root: Path) -> list[Path]:
        return [*root.rglob("*.npy"), *root.rglob("*_au_analysis.json"), *root.rglob("provenance.json")]

    def look(root: Path) -> None:
        for path in made(root):
            assert np.load(path).ndim == 2 if path.suffix == ".npy" else json.loads(path.read_text())
            assert born.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"{path} was made twice"

    def results(root: Path) -> dict[str, bytes]:
        no_litter(root)
        assert (root / "toy" / "clips.csv").read_text().count("done") == 10
        return {str(path.relative_to(root)): path.read_bytes() for path in made(root)}

    kill_again_and_again(arguments, tmp_path / "extraction", results, look)


@pytest.mark.parametrize("work", ["pack", "unpack"])
def test_packing(tmp_path, work):
    store = FeatureStore(tmp_path / "store", "toy")
    names = [f"clip {i}" for i in range(150)]
    for number, name in enumerate(names):
        for spec in SPECS:
            store.write(spec, name, rows(spec, number, 4), {"weights": "1"})
    before = {(spec, name): store.read(spec, name).tobytes() for spec in SPECS for name in names}
    if work == "unpack":
        from affect.features.packing import pack

        pack(store.root, delete=True)
    flag = {"pack": "--delete", "unpack": "--unpack"}[work]

    def look(root: Path) -> None:
        found = FeatureStore(root, "toy")
        assert {(spec, name): found.read(spec, name).tobytes() for spec in SPECS for name in names} == before

    def results(root: Path) -> Any:
        no_litter(root)
        return sorted(files(root)) if work == "pack" else files(root)

    kill_again_and_again(
        lambda root: ["pack", "--dataset=toy", f"--save_root={root}", flag],
        tmp_path / work,
        results,
        look,
        begin=lambda root: shutil.copytree(tmp_path / "store", root),
        done="nothing is to be unpacked",
    )


def affectgpt(root: Path, config: Config) -> Path:
    """Write a small training; return its file."""
    config.run.output_dir = str(root / "run")
    config.run.save_every, config.run.keep_checkpoints, config.run.ema = 2, 1, 0.9
    save_config(config, root / "toy.yaml")
    return root / "toy.yaml"


def au_agent(root: Path, llm: Path) -> Path:
    """Write a small tuning; return its file."""
    records = [{"instruction": "Say it.", "input": f"AU{i:02d}", "output": "A face " * (i + 1)} for i in range(6)]
    (root / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"stage": "sft", "model_name_or_path": str(llm), "dataset": str(root / "records.jsonl")}
    settings |= {"output_dir": str(root / "run"), "per_device_train_batch_size": 1, "max_steps": 12, "val_size": 2}
    settings |= {"logging_steps": 1, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "lora_dropout": 0.1}
    (root / "toy.yaml").write_text(yaml.safe_dump({**settings, "save_total_limit": 1}))
    return root / "toy.yaml"


def expressions(root: Path, pictures: Path) -> Path:
    """Write a small training of images; return its file."""
    settings = {"save_every": 1, "keep_checkpoints": 1, "ema": 0.9, "sam": True, "epochs": 4}
    return write_config(root / "run.yaml", run=settings, images={"data_root": str(pictures)})


@pytest.mark.parametrize("task", ["affectgpt", "au_agent", "expressions"])
def test_training(tmp_path, tiny_world, chat_llm, task):
    write: Callable[[Path], Path] = {
        "affectgpt": lambda root: affectgpt(root, tiny_world),
        "au_agent": lambda root: au_agent(root, chat_llm),
        "expressions": lambda root: expressions(root, tmp_path / "pictures"),
    }[task]
    write_pictures(tmp_path / "pictures", {"train": 5, "val": 3})
    steps: dict[Path, int] = {}

    def look(root: Path) -> None:
        kept = list_checkpoints(root / "run")
        step = read_state(kept[-1]).step if kept else 0
        assert step >= steps.get(root, 0), "a checkpoint was lost"
        steps[root] = step

    kill_again_and_again(
        lambda root: ["train", "--cfg-path", str(write(root))], tmp_path / task, trained, look, begin=Path.mkdir
    )


def trained(root: Path) -> dict[str, Any]:
    """Return all that a training leaves and no clock decides."""
    no_litter(root)
    run, last = root / "run", find_checkpoint(root / "run")
    weights = {str(path.relative_to(run)): load_file(path) for path in [*last.rglob("*.s*s"), *run.glob("*.s*s")]}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": plain(weights),
        "moments": plain(torch.load(last / "optimizer.pt", weights_only=True)["state"]),  # the rate is set at each step
        "metrics": [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines],
        "texts": {path.name: path.read_text() for path in [*run.glob("*.json"), last / "state.json"]},
        "checkpoints": [path.name for path in list_checkpoints(run)],
    }


def plain(value: Any) -> Any:
    """Return nested tensors as bytes, which can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_answering(tmp_path, tiny_world):
    config = affectgpt(tmp_path, tiny_world)
    assert train.main(["--cfg-path", str(config)]) == 0
    settings = ["inference.split=train", "inference.batch_size=1", f"inference.ckpt_root={tmp_path / 'run'}"]

    def look(root: Path) -> None:
        for path in root.rglob("*.jsonl"):
            said = [json.loads(line)["name"] for line in path.read_text().split("\n")[:-1]]
            assert said == [f"c{i}" for i in range(len(said))]

    def results(root: Path) -> dict[str, Any]:
        no_litter(root)
        (npz,) = root.rglob("*.npz")
        said = {path.name: path.read_text() for path in root.rglob("*.json*")}
        return {**said, "npz": np.load(npz, allow_pickle=True)["name2reason"].tolist()}

    kill_again_and_again(
        lambda root: ["answer", f"--cfg-path={config}", "--options", *settings, f"inference.base_root={root / 'said'}"],
        tmp_path / "answers",
        results,
        look,
    )
