"""The command `affect` and the scripts of the names that users know."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from affect.answer.files import Answer, write_answers
from affect.cli import COMMANDS, door, evaluate, main, pack
from affect.core.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["train.py", "inference.py", "tools/extract_features.py", "tools/verify_au_pipeline.py", "tools/evaluate.py"]
SCRIPTS += ["tools/pack_features.py", "tools/export_onnx.py", "tools/convert_checkpoint.py", "tools/lr_search.py"]
HEAVY = {"torch", "transformers", "accelerate", "peft", "timm", "open_clip", "pandas", "scipy", "sklearn"}
HEAVY |= {"matplotlib", "cv2", "av", "decord", "librosa", "soundfile"}
"""Packages that take most of a second and more to import."""


def helped(code: str, *arguments: str) -> tuple[str, set[str]]:
    """Return what --help prints, and the heavy packages that were imported for it."""
    after = "import sys, atexit; atexit.register(lambda: print('IMPORTED', *sys.modules, file=sys.stderr)); "
    done = subprocess.run([sys.executable, "-c", after + code, *arguments, "--help"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), HEAVY & set(done.stderr.decode().rpartition("IMPORTED")[2].split())


@pytest.mark.parametrize("command", [*COMMANDS, "export onnx", "export checkpoint", "evaluate labels"])
def test_help_of_a_command_opens_without_heavy_packages(command):
    text, imported = helped("from affect.cli import main; main()", *command.split())
    assert text.startswith("usage:")
    assert not imported
    assert ("--offline" in text) == (command in ("extract", "train", "answer", "evaluate labels"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_of_known_names_open_the_same_doors(script):
    code = f"import runpy; sys.argv[0] = {script!r}; runpy.run_path({script!r}, run_name='__main__')"
    text, imported = helped(code)
    assert text.startswith("usage:")
    assert not imported


def test_the_command_alone_lists_all_commands(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    listed = capsys.readouterr().out
    assert left.value.code == 0
    assert all(f"\n  {name} " in listed for name in COMMANDS)


def test_an_unknown_command_is_one_line():
    with pytest.raises(SystemExit, match=r"unknown command 'trian'; did you mean train\?"):
        main(["trian"])


def test_what_users_can_mend_is_one_line_and_no_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*none\.yaml"):
        door("train", ["--cfg-path", str(tmp_path / "none.yaml")])


def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path, monkeypatch, capsys):
    def answer(_):
        write_answers(Path("/dev/full"), [Answer("a", "toy", "What?", "Joy.", [], [])])

    def write(_):
        with atomic_write(tmp_path / "x.npy"):
            raise OSError(errno.ENOSPC, "No space left on device")

    advice = r"cannot be written \(No space left on device\); make room and give the same command again"
    for work, file in ((answer, "/dev/full"), (write, "x.npy")):
        monkeypatch.setattr(pack, "main", work)
        with pytest.raises(SystemExit, match=rf"^error: .*{file}: {advice}$"):
            door("pack")
    monkeypatch.setattr(evaluate, "_require_own_files", write)
    assert evaluate.main(["grounding", "--pred", "x"]) == 2
    assert f"error: {tmp_path}/x.npy: cannot be written" in capsys.readouterr().err
