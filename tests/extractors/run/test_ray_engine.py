"""Extraction by a pool of Ray actors."""

import threading
import time

import numpy as np
import psutil
import pytest

from affect.cli import extract as extract_features
from extractors.run.journal import ClipRecord, Journal, RunReport
from extractors.run.session import Session
from toy_clips import write_clips


def arguments(tmp_path, *more):
    places = [f"--{kind}_root={tmp_path / 'clips' / kind}" for kind in ("video", "audio", "openface")]
    encoders = ["--visual_encoder", "DCT", "--acoustic_encoder", "PROSODY", "--au_encoder", "HASHED_NGRAMS"]
    return ["--dataset", "toy", *places, "--save_root", str(tmp_path / "out"), *encoders, "--engine", "ray", *more]


def kill_an_actor_at_work(folder) -> None:
    """Wait until OpenFace is asked, kill the actor that waits for it, and let OpenFace answer from then on."""
    while not (folder / "asked").exists():
        time.sleep(0.05)
    try:
        callers = psutil.Process(int((folder / "asked").read_text())).parents()
        next(process for process in callers if "ExtractionActor" in " ".join(process.cmdline())).kill()
    finally:
        (folder / "answer").touch()


def test_a_pool_of_actors_fills_the_same_store_though_one_of_them_is_killed(tmp_path, monkeypatch):
    write_clips(tmp_path / "clips", list("abcdef"))
    (tmp_path / "clips/video/c.mp4").write_text("this is no video")
    table = (tmp_path / "clips/openface/e.csv").rename(tmp_path / "e.csv")
    tool = tmp_path / "openface"
    tool.write_text(f"""#!/bin/sh
echo $$ > {tmp_path}/asking; mv {tmp_path}/asking {tmp_path}/asked
while ! test -e {tmp_path}/answer; do sleep 0.1; done
cp {table} $4/e.csv
""")
    tool.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    import ray

    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False)
    killer = threading.Thread(target=kill_an_actor_at_work, args=(tmp_path,), daemon=True)
    killer.start()
    more = ["--actors", "2", "--num_workers", "1", "--openface_executable", str(tool)]
    try:
        assert extract_features.main(arguments(tmp_path, *more)) == 1
    finally:
        ray.shutdown()
    killer.join(10)
    assert (tmp_path / "answer").exists() and not killer.is_alive()
    root = tmp_path / "out" / "toy"
    assert sorted(path.stem for path in (root / "frame_DCT_8frms").glob("*.npy")) == list("abdef")
    assert sorted(path.stem for path in (root / "au_HASHED_NGRAMS_8frms").glob("*.npy")) == list("abcdef")
    assert len(np.load(root / "audio_PROSODY_8clips" / "c.npy")) == 8
    assert {line.split(",")[0] for line in (root / "failures.csv").read_text().splitlines()[1:]} == {"c"}
    assert list((root / "journal").glob("ray-*.jsonl"))


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
