"""SIGKILL at random moments: nothing half written, nothing done twice, the same store in the end.

The long form, of all commands, is tests/test_kills.py.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from affect.core.au_json import read_au_json
from toy_clips import write_clips

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "extract_features.py"
EMBEDDED = ["--visual_encoder", "DCT", "--acoustic_encoder", "PROSODY", "--au_encoder", "HASHED_NGRAMS"]


def start(folders: dict[str, Path], root: Path) -> subprocess.Popen:
    places = [f"--{kind}_root={folder}" for kind, folder in folders.items()]
    command = [sys.executable, str(SCRIPT), "--dataset", "toy", *places, f"--save_root={root}", *EMBEDDED]
    return subprocess.Popen([*command, "--no-progress"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(root: Path) -> dict[str, Path]:
    """Every file that a run leaves, its log and tables aside."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix in {".npy", ".json"}]
    return {str(path.relative_to(root)): path for path in files}


def whole(path: Path) -> bool:
    return (
        bool(read_au_json(path))
        if path.name.endswith("_au_analysis.json")
        else path.suffix == ".json" or (np.load(path, allow_pickle=False).ndim == 2)
    )


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_store(tmp_path):
    clips, kills = 16, 3
    folders = write_clips(tmp_path / "clips", [f"clip {i}" for i in range(clips)], faceless="clip 3")
    calm = start(folders, tmp_path / "calm")
    output, _ = calm.communicate()
    assert calm.returncode == 0, output
    expected = {name: path.read_bytes() for name, path in results(tmp_path / "calm").items()}

    root, rng = tmp_path / "killed", random.Random(0)
    files = len(expected)
    born: dict[str, int] = {}
    for kill in range(kills):
        process = start(folders, root)
        limit = files * kill // kills + rng.randrange(1, files // kills + 1)
        while len(results(root)) < limit and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() / 100)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for name, path in results(root).items():
            assert whole(path), name
            assert born.setdefault(name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"{name} was made twice"
    last = start(folders, root)
    output, _ = last.communicate()
    assert last.returncode == 0, output
    assert {name: path.read_bytes() for name, path in results(root).items()} == expected
    again = {name: path.stat().st_mtime_ns for name, path in results(root).items()}
    assert {name: again[name] for name in born} == born
    litter = [path for path in root.rglob(".*") if path.is_file()]
    assert litter == []
    assert (root / "toy" / "clips.csv").read_text().count("done") == clips


def test_workers_end_with_the_process_that_started_them(tmp_path):
    folders = write_clips(tmp_path / "clips", [f"clip {i}" for i in range(60)])
    process = start(folders, tmp_path / "out")
    while not results(tmp_path / "out"):
        time.sleep(0.01)
    workers = _descendants(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(Path(f"/proc/{worker}").exists() and not _zombie(worker) for worker in workers):
        time.sleep(0.05)  # the test's own time limit ends a wait for ever


def _descendants(process: int) -> list[int]:
    children = [int(c) for path in Path(f"/proc/{process}/task").glob("*/children") for c in path.read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in _descendants(child))]


def _zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
