import json

import numpy as np
import pytest

from affect.cli import pack as pack_features
from affect.cli import verify as verify_au_pipeline
from affect.data.dataset import open_datasets
from affect.features.store import FeatureStore
from benchmarks import store as benchmark_store


def call(config, *more):
    root = config.datasets["toy"].preextracted_root
    return pack_features.main(["--dataset", "toy", "--save_root", str(root), *more])


def files(config):
    root = FeatureStore(config.datasets["toy"].preextracted_root, "toy").root
    return {path.relative_to(root): path.read_bytes() for path in root.glob("*/*.npy")}


def test_the_data_set_is_the_same_packed_and_unpacked(tiny_world, capsys):
    before, content = open_datasets(tiny_world, "train")[0], files(tiny_world)
    features = [before.features(i) for i in range(len(before))]
    assert call(tiny_world, "--delete") == 0
    assert "48" in capsys.readouterr().out
    packed = open_datasets(tiny_world, "train")[0]
    packed.check_arrays()
    for i, expected in enumerate(features):
        found = packed.features(i)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[stream], expected[stream]) for stream in expected)
    assert call(tiny_world, "--unpack") == 0
    assert files(tiny_world) == content


def test_features_missing_from_a_pack_are_found_before_training(tiny_world):
    store = FeatureStore(tiny_world.datasets["toy"].preextracted_root, "toy")
    (store.root / "audio_A_8clips" / "c2.npy").unlink()
    call(tiny_world, "--delete")
    with pytest.raises(ValueError, match=r"clip 'c2' has no audio features: expected .*audio_A_8clips/c2\.npy"):
        open_datasets(tiny_world, "train")


def test_the_checker_finds_the_same_clips_and_faults_in_a_pack(tiny_world, capsys):
    names = ["--visual_encoder", "V", "--acoustic_encoder", "A", "--au_encoder", "U", "--json"]
    arguments = ["--dataset", "toy", "--save_root", tiny_world.datasets["toy"].preextracted_root, *names]
    code = verify_au_pipeline.main(arguments)
    before = json.loads(capsys.readouterr().out)
    call(tiny_world, "--delete")
    capsys.readouterr()
    assert verify_au_pipeline.main(arguments) == code
    assert json.loads(capsys.readouterr().out) == before
    assert {finding["check"] for finding in before["findings"]} >= {"face", "audio", "au", "frame"}


def test_refused_files_are_listed_and_set_the_exit_code(tiny_world, capsys):
    path = FeatureStore(tiny_world.datasets["toy"].preextracted_root, "toy").root / "audio_A_8clips" / "c2.npy"
    path.write_bytes(b"cut")
    assert call(tiny_world, "--delete") == 1
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    assert path.read_bytes() == b"cut"


def test_files_stay_without_delete_and_that_is_said(tiny_world, capsys):
    before = files(tiny_world)
    assert call(tiny_world, "--folders", "audio_A_8clips,au_U_8frms") == 0
    assert "are read first" in capsys.readouterr().out
    assert {path: content for path, content in files(tiny_world).items() if path.parts[0] != "packed"} == before


def test_the_benchmark_reads_the_same_clips_three_ways(tmp_path, monkeypatch):
    # a test drops the caches of its own files only
    monkeypatch.setattr(benchmark_store, "DROP_CACHES", tmp_path / "none" / "drop_caches")
    result = benchmark_store.benchmark_store(clips=20, samples=10, seed=0, folder=tmp_path)
    assert result["cold_by"] == "posix_fadvise"
    assert result["bytes_a_sample"] == 98304
    assert set(result["microseconds_a_sample"]) == {"np.load", "store", "packed"}
    assert set(result["packed_is_faster"]) == {"np.load", "store"}
    assert all(ratio > 0 for states in result["packed_is_faster"].values() for ratio in states.values())
    json.dumps(result)
    with pytest.raises(ValueError, match="at most one for each of 5 clips, found 6"):
        benchmark_store.benchmark_store(clips=5, samples=6, seed=0, folder=tmp_path)
