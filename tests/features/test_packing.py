"""Packing loses nothing: kills, full disks, second runs, damage."""

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import lmdb
import numpy as np
import pytest

from affect.features import packing
from affect.features.packed import Packed, read_head, set_clip, write_head
from affect.features.packing import pack, unpack
from affect.features.store import FeatureError, FeatureStore
from toy_store import FACE, FRAME, NAMES, SPECS, arrays, files, fill_store, rows


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

    paths = [(Path, name) for name in ("replace", "unlink", "rmdir", "mkdir", "open")]
    for owner, name in [
        (os, "fsync"),
        (os, "link"),
        (packing, "put"),
        (packing, "set_clip"),
        (packing, "write_head"),
        *paths,
    ]:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    monkeypatch.setattr(packing, "TOGETHER", 4)


@pytest.mark.parametrize("work", ["pack", "pack and delete", "add", "unpack", "unpack one"])
def test_a_kill_at_any_step_loses_nothing_and_the_next_run_ends_well(store, tmp_path, monkeypatch, work):
    if work not in ("pack", "pack and delete"):
        pack(store.root, delete=True)
    if work == "add":
        store.write(FRAME, "ab", rows(FRAME, 77), {"weights": "1"})
    before = arrays(store)

    def do() -> None:
        if work.startswith("unpack"):
            unpack(root, [FACE.folder] if work == "unpack one" else [])
        else:
            pack(root, delete=work != "pack")

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
    assert step > 10


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (lmdb.Error("mdb_txn_commit: Input/output error"), r"data\.mdb: cannot be .*; if the disk is full, make room"),
    ],
)
def test_a_full_disk_leaves_the_pack_as_it_was(store, monkeypatch, error, message):
    pack(store.root, delete=True)
    before = files(store.root)
    store.write(FRAME, "new", rows(FRAME, 1), {"weights": "1"})

    def full(*_):
        raise error

    monkeypatch.setattr(packing, "write_head", full)
    with pytest.raises(type(error) if isinstance(error, OSError) else FeatureError, match=message):
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
    ("change", "message"),
    [
        (
            lambda content: content[: len(content) // 2],
            r"expected at least \d+ bytes, found \d+; the packed features are",
        ),
        (lambda content: b"", "is empty; bring it back from a copy"),
        (lambda content: bytes(len(content)), "cannot be read .*; the packed features are damaged"),
        (lambda content: b"no environment" * 1000, "cannot be read .*; the packed features are damaged"),
    ],
)
def test_a_damaged_environment_is_named_in_one_sentence(store, change, message):
    pack(store.root, delete=True)
    path = store.root / "packed" / "data.mdb"
    path.write_bytes(change(path.read_bytes()))
    Packed(str(path.parent)).close()
    with pytest.raises(FeatureError, match=message) as error:
        FeatureStore(store.root, "toy").read(FRAME, "ab")
    assert "\n" not in str(error.value) and str(store.root / "packed") in str(error.value)


@contextmanager
def environment(store: FeatureStore) -> Iterator[lmdb.Transaction]:
    """What is packed, to be damaged."""
    folder = store.root / "packed"
    Packed(str(folder)).close()
    with lmdb.open(str(folder), map_size=1 << 24, lock=False) as env, env.begin(write=True) as txn:
        yield txn


def damaged(record: bytes) -> list[bytes]:
    """Records with one bit changed, in every place; cut ones; none of its bytes; words that have changed places."""
    flips = [record[:i] + bytes([record[i] ^ 1 << i % 8]) + record[i + 1 :] for i in range(len(record))]
    swapped = record[:-16] + record[-8:] + record[-16:-8]
    return [*flips, record[:-1], record + b"x", record[:5], bytes(len(record)), swapped]


@pytest.mark.parametrize("key", [b"ab/frame_CLIP_8frms", b"z.1/au_TEXT_8frms"])
def test_no_damage_to_a_record_gives_anything_but_one_sentence_that_names_clip_and_folder(store, key):
    pack(store.root, delete=True)
    name, folder = key.decode().split("/")
    spec = {spec.folder: spec for spec in SPECS}[folder]
    with environment(store) as txn:
        record = txn.get(key)
    for content in damaged(record):
        with environment(store) as txn:
            txn.put(key, content)
        with pytest.raises(FeatureError, match=f"packed: {folder}/{name}.npy: expected the bytes that were packed"):
            store.read(spec, name)
        assert store.has(spec, name)
        assert store.read(FACE, "ab").shape == (1, 4)  # the others are as they were


def test_a_record_in_the_place_of_another_is_found(store):
    pack(store.root, delete=True)
    with environment(store) as txn:
        txn.put(b"ab/frame_CLIP_8frms", txn.get(b"z.1/frame_CLIP_8frms"))
    with pytest.raises(FeatureError, match=r"frame_CLIP_8frms/ab\.npy: expected the bytes that were packed"):
        store.read(FRAME, "ab")


def test_lost_records_are_damage_and_not_clips_that_nobody_looked_at(store):
    pack(store.root, delete=True)
    with environment(store) as txn:
        txn.delete(b"ab/frame_CLIP_8frms")
        txn.delete(b"\0a b")
    with pytest.raises(FeatureError, match=r"frame_CLIP_8frms/ab\.npy: expected an array, found none"):
        store.read(FRAME, "ab")
    for look in (lambda: store.missing(FRAME, ["a b"]), store.names, lambda: store.read(FRAME, "new")):
        with pytest.raises(FeatureError, match="expected the names that were packed, found others"):
            look()
    with environment(store) as txn:
        txn.delete(b"\0")
    with pytest.raises(FeatureError, match="expected the record that tells of the others, found none"):
        store.has(FRAME, "a")


def test_a_flipped_bit_anywhere_in_the_file_gives_no_other_numbers_and_nothing_absent(store):
    before = arrays(store)
    pack(store.root, delete=True)
    data, rng = store.root / "packed" / "data.mdb", random.Random(0)
    content, told = data.read_bytes(), 0
    for _ in range(150):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        data.write_bytes(flipped)
        Packed(str(data.parent)).close()
        for spec, name in product(SPECS, NAMES):
            try:
                assert store.read(spec, name).tobytes() == before[spec.folder, name]
            except FeatureError as error:
                assert "packed" in str(error) and "make it with" not in str(error)
                told += 1
    assert told


@pytest.mark.parametrize("elsewhere", [False, True], ids=["folder", "link to a folder"])
def test_what_lies_beside_the_packed_features_is_never_removed(store, tmp_path, elsewhere):
    """As shards of an earlier version do whose index was lost."""
    packed, outside = store.root / "packed", tmp_path / "outside"
    (outside if elsewhere else packed).mkdir()
    if elsewhere:
        packed.symlink_to(outside)
    before = arrays(store)
    for name in ("shard-00000.bin", "notes.txt"):
        (packed / name).write_text("the only copy")
    with pytest.raises(FeatureError, match="nothing is to be unpacked"):
        unpack(store.root)
    pack(store.root, delete=True)
    unpack(store.root)
    assert {path.name: path.read_text() for path in packed.iterdir()} == dict.fromkeys(
        ("shard-00000.bin", "notes.txt"), "the only copy"
    )
    assert arrays(store) == before


def test_names_out_of_a_file_do_not_become_paths_unseen(store):
    pack(store.root, delete=True)
    with environment(store) as txn:
        head = read_head(txn, "")
        for name in ("..", "a\\b"):
            set_clip(txn, head, name, [FRAME.folder])
        set_clip(txn, head, "ab", [FRAME.folder, ".."])
        write_head(txn, head)
    report = unpack(store.root)
    assert sum("cannot be used as a file name" in sentence for sentence in report.refused) == 2
    assert (store.root / "packed").is_dir()


def test_unpacking_damaged_features_saves_the_rest_and_keeps_them(store):
    before = arrays(store)
    pack(store.root, delete=True)
    with environment(store) as txn:
        record = txn.get(b"ab/frame_CLIP_8frms")
        txn.put(b"ab/frame_CLIP_8frms", record[:-1] + b"?")
    report = unpack(store.root)
    assert (report.written, len(report.refused)) == (17, 1)
    assert "frame_CLIP_8frms/ab.npy" in report.refused[0]
    with environment(store) as txn:
        txn.put(b"ab/frame_CLIP_8frms", record)
    assert unpack(store.root).written == 1
    assert arrays(store) == before and not (store.root / "packed").exists()


def test_a_file_that_cannot_be_read_does_not_cost_its_packed_array(store):
    pack(store.root, delete=True)
    store.path(FRAME, "ab").write_bytes(b"cut")
    report = unpack(store.root)
    assert len(report.refused) == 1 and str(store.path(FRAME, "ab")) in report.refused[0]
    store.path(FRAME, "ab").unlink()
    np.testing.assert_array_equal(store.read(FRAME, "ab"), rows(FRAME, 1, 1))


def test_what_an_earlier_version_packed_is_refused_with_what_to_do(store):
    (store.root / "packed").mkdir()
    (store.root / "packed" / "index.json").write_text('{"version": 1}')
    for look in (
        lambda: store.read(FRAME, "ab"),
        lambda: store.missing(FRAME, ["new"]),
        lambda: pack(store.root),
        lambda: unpack(store.root),
    ):
        with pytest.raises(FeatureError, match="an earlier version packed; unpack it with the version that made it"):
            look()


def test_packed_features_are_read_from_a_disk_that_cannot_be_written(store):
    before = arrays(store)
    pack(store.root, delete=True)
    for path in (store.root / "packed", *(store.root / "packed").iterdir()):
        path.chmod(0o555)
    assert arrays(FeatureStore(store.root, "toy")) == before
    assert [path.name for path in (store.root / "packed").iterdir()] == ["data.mdb"]


def test_a_reader_sees_what_others_pack_meanwhile(store):
    store.path(FRAME, "ab").rename(store.root / "later.npy")
    pack(store.root, delete=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as reader:
        assert reader.apply(store.missing, [FRAME, ["ab"]]) == ["ab"]
        (store.root / "later.npy").rename(store.path(FRAME, "ab"))
        pack(store.root, delete=True)
        assert reader.apply(store.missing, [FRAME, ["ab"]]) == []
        np.testing.assert_array_equal(reader.apply(store.read, [FRAME, "ab"]), rows(FRAME, 1, 1))
        unpack(store.root)
        store.path(FRAME, "ab").unlink()
        assert reader.apply(store.missing, [FRAME, ["ab"]]) == ["ab"]


def test_threads_read_while_it_is_packed_anew(store):
    before = arrays(store)
    pack(store.root, delete=True)
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(arrays, store) for _ in range(40)]
        store.write(FRAME, "new", rows(FRAME, 3), {"weights": "1"})
        subprocess.run([sys.executable, "-c", PACK, str(store.root)], check=True)
        assert all(future.result() == before for future in found)
    assert store.has(FRAME, "new")


PACK = "import sys, pathlib; from affect.features.packing import pack; pack(pathlib.Path(sys.argv[1]), delete=True)"


def test_a_linked_folder_is_packed_and_nothing_behind_the_link_is_removed_or_written(store, tmp_path):
    before, elsewhere = arrays(store), tmp_path / "elsewhere"
    shutil.move(store.root / FACE.folder, elsewhere)
    (store.root / FACE.folder).symlink_to(elsewhere)
    there = files(elsewhere)
    report = pack(store.root, delete=True)
    assert [told.partition(":")[0] for told in report.refused] == [str(store.root / FACE.folder)]
    assert files(elsewhere) == there and report.deleted < report.added
    with pytest.raises(FeatureError, match=rf"{FACE.folder}: is a link"):
        unpack(store.root)
    (store.root / FACE.folder).unlink()
    unpack(store.root)
    assert arrays(store) == before
