"""Extraction by a pool of Ray actors, where ray is installed."""

import numpy as np
import pytest
from toy_clips import write_clips

import extract_features


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
    assert "ray-" in next((root / "journal").iterdir()).name


def test_without_the_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    write_clips(tmp_path / "clips", ["a"])
    with pytest.raises(ModuleNotFoundError, match="engine 'ray' is asked for"):
        extract_features.main(arguments(tmp_path))


def test_devices_and_ray_are_not_mixed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        extract_features.main(arguments(tmp_path, "--devices", "cuda:0,cuda:1"))
    assert "drop one" in capsys.readouterr().err
