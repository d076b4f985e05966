"""Extraction by a pool of Ray actors, where ray is installed."""

import numpy as np
import pytest

from affect.cli import extract as extract_features
from extractors.run.journal import ClipRecord, Journal, RunReport
from extractors.run.session import Session
from toy_clips import write_clips


def arguments(tmp_path, *more):
    places = [f"--{kind}_root={tmp_path / 'clips' / kind}" for kind in ("video", "audio", "openface")]
    encoders = ["--visual_encoder", "DCT", "--acoustic_encoder", "PROSODY", "--au_encoder", "HASHED_NGRAMS"]
    return ["--dataset", "toy", *places, "--save_root", str(tmp_path / "out"), *encoders, "--engine", "ray", *more]


def test_a_pool_of_actors_fills_the_same_store(tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    write_clips(tmp_path / "clips", ["a", "b", "c"])
    (tmp_path / "clips" / "video" / "c.mp4").write_text("this is no video")
    monkeypatch.chdir(tmp_path)
    assert extract_features.main(arguments(tmp_path, "--num_workers", "1")) == 1
    root = tmp_path / "out" / "toy"
    assert len(np.load(root / "audio_PROSODY_8clips" / "c.npy")) == 8
    assert sorted(path.stem for path in (root / "frame_DCT_8frms").glob("*.npy")) == ["a", "b"]
    assert (root / "failures.csv").read_text().count("c,") == 2
    assert "ray-" in next((root / "journal").glob("*.jsonl")).name


def test_the_summary_needs_neither_weights_nor_device_of_the_pool(tmp_path, capsys, monkeypatch):
    def pool(settings, names, actors):
        with Journal(Session(settings).store.root, "ray-1") as journal:
            journal.append(ClipRecord("b", made=["frame"]))
            journal.append(ClipRecord("a", failures={"frame": ("it is no video", "")}))
        return RunReport(len(names))

    monkeypatch.setattr("extractors.run.ray_engine.run_on_ray", pool)
    write_clips(tmp_path / "clips", ["a", "b"])
    more = ["--device", "cuda:7", "--visual_encoder", "hf:/no/such/folder"]
    assert extract_features.main([*arguments(tmp_path), *more]) == 1
    assert "it is no video" in (tmp_path / "out" / "toy" / "failures.csv").read_text()


def test_without_the_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    write_clips(tmp_path / "clips", ["a"])
    with pytest.raises(ModuleNotFoundError, match="engine 'ray' is asked for"):
        extract_features.main(arguments(tmp_path))


def test_devices_and_ray_are_not_mixed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        extract_features.main(arguments(tmp_path, "--devices", "cuda:0,cuda:1"))
    assert "drop one" in capsys.readouterr().err
