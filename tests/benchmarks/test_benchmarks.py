"""The benchmark commands run and print figures that can be read."""

import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as benchmark
from benchmarks import answer as benchmark_infer
from benchmarks import train as benchmark_train
from benchmarks.world import Preset
from toy_clips import write_clips

SMALL = Preset(32, 64, 1, 2, 1, 2000)


@pytest.fixture
def figures(capsys, monkeypatch):
    for module in (benchmark_train, benchmark_infer):
        monkeypatch.setitem(module.PRESETS, "tiny", SMALL)

    def run(*arguments):
        assert benchmark.main(list(arguments)) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_training_is_measured_beside_a_plain_loop(figures):
    found = figures("train", "--batch_size", "2", "--steps", "5", "--clips", "8", "--plain", "--threads", "1")
    assert found["affect"]["samples_per_second"] > 0
    assert found["affect"]["padding_share"] < 1
    assert found["affect"]["mean_loss"] == pytest.approx(found["plain"]["mean_loss"], abs=0.5)
    assert found["affect_over_plain"] > 0


def test_batches_answer_as_single_clips_do(figures):
    found = figures("infer", "--clips", "5", "--batch_size", "4", "--max_new_tokens", "3", "--threads", "1")
    assert found["same_answers"] == 5
    assert found["batch_4"]["clips_per_second"] > 0


def test_extraction_shares_add_up(figures, tmp_path):
    folders = write_clips(tmp_path, ["a", "b"])
    found = figures(
        "extract",
        f"--video_root={folders['video']}",
        f"--openface_root={folders['openface']}",
        "--copies=2",
        "--num_workers=1",
    )
    assert (found["clips"], found["failed"]) == (4, 0)
    assert sum(found["main_process_share"].values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["extract", "store", "train", "infer", "fer"])
def test_every_benchmark_tells_its_settings(name, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: benchmark {name}" in capsys.readouterr().out


def test_only_what_is_asked_for_is_imported():
    look = "import sys; from benchmarks.__main__ import main\ntry: main(['store', '--help'])\nexcept SystemExit: pass\n"
    look += "print([name for name in ('torch', 'benchmarks.train', 'transformers') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["speed"])
    assert "invalid choice: 'speed'" in capsys.readouterr().err
