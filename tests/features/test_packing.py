"""Packing loses nothing: kills, full disks, second runs, damage."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from affect.features import packing
from affect.features.pack import open_pack
from affect.features.packing import pack, unpack
from affect.features.store import FeatureError, FeatureStore
from toy_store import FACE, FRAME, arrays, files, fill_store, rows


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return fill_store(tmp_path)


class Killed(BaseException):
    """Stands for SIGKILL: no clean-up may do anything after it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die at its n-th call that changes what is on disk."""
    left = [step]

    def dying(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    paths = [(Path, name) for name in ("replace", "unlink", "rmdir", "mkdir", "chmod", "open")]
    for owner, name in [(os, "fsync"), *paths]:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


@pytest.mark.parametrize("work", ["pack", "pack and delete", "add", "unpack", "unpack one"])
def test_a_kill_at_any_step_loses_nothing_and_the_next_run_ends_well(store, tmp_path, monkeypatch, work):
    if work not in ("pack", "pack and delete"):
        pack(store.root, shard_size=500, delete=True)
    if work == "add":
        store.write(FRAME, "ab", rows(FRAME, 77), {"weights": "1"})
    before = arrays(store)

    def do() -> None:
        if work.startswith("unpack"):
            unpack(root, [FACE.folder] if work == "unpack one" else [])
        else:
            pack(root, shard_size=500, delete=work != "pack")

    root = tmp_path / "whole" / "toy"
    shutil.copytree(store.root, root)
    do()
    expected = set(files(root))
    for step in range(1000):
        root = tmp_path / f"killed{step}" / "toy"
        shutil.copytree(store.root, root)
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                do()
                break
            except Killed:
                pass
        assert arrays(FeatureStore(root, "toy")) == before, f"after a kill at step {step}"
        try:
            do()
        except FeatureError as error:
            assert "found" in str(error) and work.startswith("unpack")  # killed after the last step that counts
        assert arrays(FeatureStore(root, "toy")) == before
        assert set(files(root)) == expected, f"after a kill at step {step}"
        shutil.rmtree(root)
    assert step > 20


def test_a_full_disk_leaves_the_pack_as_it_was(store, monkeypatch):
    pack(store.root, delete=True)
    before = files(store.root)
    store.write(FRAME, "new", rows(FRAME, 1), {"weights": "1"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_add_to_index", full)
    with pytest.raises(OSError, match="No space left"):
        pack(store.root, delete=True)
    assert files(store.root).keys() - before.keys() == {f"{FRAME.folder}/new.npy"}
    assert store.has(FRAME, "new")


def test_two_runs_do_not_pack_at_a_time(store, monkeypatch):
    def again(*_):
        pack(store.root)

    monkeypatch.setattr(packing, "_list_files", again)
    with pytest.raises(FeatureError, match="another run packs or unpacks it"):
        pack(store.root)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("shard-0001-0000.bin", "cut", r"expected \d+ bytes, found \d+; the pack is damaged"),
        ("shard-0001-0000.bin", "empty", r"expected \d+ bytes, found 0"),
        ("shard-0001-0000.bin", "remove", "cannot be read"),
        ("names-0001.npy", "cut", "cannot be read"),
        ("names-0001.npy", "empty", "cannot be read"),
        ("names-0001.npy", "remove", "found no such file"),
        ("entries-0001.npy", "cut", "cannot be read"),
        ("entries-0001.npy", "other", r"expected int64 \[6, 3, 3\]"),
        ("entries-0001.npy", "beyond", "the pack is damaged"),
        ("entries-0001.npy", "negative", "the pack is damaged"),
        ("shard-0001-0000.bin", "zeros", "cannot be read"),
        ("index.json", "cut", "expected the index of a pack"),
        ("index.json", "empty", "expected the index of a pack"),
        ("index.json", "list", "expected the index of a pack"),
        ("index.json", "version", "version is 2, this program reads 1"),
    ],
)
def test_a_damaged_pack_is_named_in_one_sentence(store, file, change, message):
    pack(store.root, delete=True)
    path = store.root / "packed" / file
    content = path.read_bytes()
    if change == "remove":
        path.unlink()
    elif change == "other":
        np.save(path, np.zeros((5, 3, 3), np.int64))
    elif change in ("beyond", "negative"):
        entries = np.load(path)
        entries[:, :, 1] = 1 << 40 if change == "beyond" else -64
        np.save(path, entries)
    else:
        changed = {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "zeros": bytes(len(content)),
            "list": b"[]",
            "version": content.replace(b'"version": 1', b'"version": 2'),
        }
        path.write_bytes(changed[change])
    with pytest.raises(FeatureError, match=message) as error:
        FeatureStore(store.root, "toy").read(FRAME, "ab")
    assert "\n" not in str(error.value) and str(store.root / "packed") in str(error.value)


def test_unpacking_a_damaged_pack_saves_the_rest_and_keeps_it(store):
    before = arrays(store)
    pack(store.root, shard_size=500, delete=True)
    packed = open_pack(store.root / "packed")
    shard = store.root / "packed" / packed.shards[-1][0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-64])
    lost = int((packed.entries[:, :, 0] == len(packed.shards) - 1).sum())
    report = unpack(store.root)
    assert (report.written, len(report.refused)) == (18 - lost, lost) and lost
    assert str(shard) in report.refused[0]
    shard.write_bytes(content)
    assert unpack(store.root).written == lost
    assert arrays(store) == before and not (store.root / "packed").exists()
