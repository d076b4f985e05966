"""A packed store reads as its files did."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from affect.core.schema import Modality
from affect.features import packing
from affect.features.packed import Packed
from affect.features.packing import pack, unpack
from affect.features.store import FeatureError, FeatureSpec, FeatureStore
from toy_store import AU, FACE, FRAME, NAMES, arrays, files, fill_store, rows


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return fill_store(tmp_path)


def test_packed_features_are_what_the_files_were(store):
    before = arrays(store)
    report = pack(store.root, delete=True)
    assert (report.added, report.deleted, report.refused) == (18, 18, [])
    assert not list(store.root.glob("*_*/*.npy"))
    for reader in (store, FeatureStore(store.root, "toy")):
        assert arrays(reader) == before
        assert reader.read(AU, "ab").dtype == np.float32
        assert reader.read(FRAME, "a").shape == (0, 4)


def test_unpacking_gives_the_same_bytes_back(store):
    before = files(store.root)
    pack(store.root, delete=True)
    assert unpack(store.root).written == 18
    assert files(store.root) == before
    assert not (store.root / "packed").exists()


def test_nobody_else_notices(store, tmp_path):
    wanted = [*NAMES, "new"]
    before = (store.missing(FRAME, wanted), store.names(), store.provenance(AU), store.has_folder(FACE))
    pack(store.root, delete=True)
    assert (store.missing(FRAME, wanted), store.names(), store.provenance(AU), store.has_folder(FACE)) == before
    assert before[0] == ["new"]
    assert store.has(FACE, "a b") and not store.has(FACE, "new") and not store.has(FACE, "y" * 200)
    other = FeatureSpec(Modality.FACE, "OTHER", dim=4)
    assert store.missing(other, NAMES) == NAMES and not store.has_folder(other) and store.provenance(other) is None
    with pytest.raises(FeatureError, match=r"'new' has no face features: .*new\.npy; make it with"):
        store.read(FACE, "new")


def test_the_other_spelling_of_the_folder_is_packed_and_read_too(tmp_path):
    folder = tmp_path / "toy" / "frame_CLIP_uniform_8frms"
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", rows(FRAME, 1))
    pack(tmp_path / "toy", delete=True)
    store = FeatureStore(tmp_path, "toy")
    assert store.has(FRAME, "a") and store.has_folder(FRAME)
    with pytest.warns(UserWarning, match="unknown origin"):
        np.testing.assert_array_equal(store.read(FRAME, "a"), rows(FRAME, 1))


def test_a_vector_is_one_row_packed_too(store):
    np.save(store.path(FRAME, "vector"), np.ones(4, np.float32))
    pack(store.root, delete=True)
    assert store.read(FRAME, "vector").shape == (1, 4)


def test_what_is_read_is_the_callers_own(store):
    pack(store.root, delete=True)
    array = store.read(FRAME, "ab")
    array += 1
    np.testing.assert_array_equal(store.read(FRAME, "ab"), rows(FRAME, 1, 1))


def read_sum(store: FeatureStore) -> float:
    return float(store.read(AU, "z.1").sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_that_has_read_goes_to_other_processes(store, method):
    pack(store.root, delete=True)
    expected = read_sum(store)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_sum, [store]) == expected
    assert len(pickle.dumps(store)) < 2000


def test_what_is_written_after_packing_is_what_is_read(store):
    reader = FeatureStore(store.root, "toy")
    pack(store.root, delete=True)
    reader.read(FRAME, "ab")
    store.write(FRAME, "ab", rows(FRAME, 77), {"weights": "1"})
    np.testing.assert_array_equal(reader.read(FRAME, "ab"), rows(FRAME, 77))
    assert pack(store.root, delete=True).added == 1
    assert not store.path(FRAME, "ab").exists()
    np.testing.assert_array_equal(reader.read(FRAME, "ab"), rows(FRAME, 77))
    unpack(store.root)
    np.testing.assert_array_equal(reader.read(FRAME, "ab"), rows(FRAME, 77))
    store.path(FRAME, "ab").unlink()
    assert not reader.has(FRAME, "ab")


def test_a_newer_file_outlives_unpacking(store):
    pack(store.root, delete=True)
    store.write(FRAME, "ab", rows(FRAME, 77), {"weights": "1"})
    assert unpack(store.root).written == 17
    np.testing.assert_array_equal(store.read(FRAME, "ab"), rows(FRAME, 77))


def test_a_file_that_changes_while_packing_is_not_deleted(store, monkeypatch):
    def write_then_delete(*args):
        np.save(store.path(FRAME, "ab"), rows(FRAME, 5))
        return delete(*args)

    delete = packing._delete
    monkeypatch.setattr(packing, "_delete", write_then_delete)
    assert pack(store.root, delete=True).deleted == 17
    np.testing.assert_array_equal(store.read(FRAME, "ab"), rows(FRAME, 5))


def test_packing_again_adds_what_is_new(store):
    pack(store.root, delete=True)
    store.write(FRAME, "Ä", rows(FRAME, 8), {"weights": "1"})
    audio = FeatureSpec(Modality.AUDIO, "SOUND", dim=5)
    store.write(audio, "ab", rows(audio, 9), {})
    before = arrays(store)
    assert pack(store.root, delete=True).added == 2
    assert arrays(store) == before
    np.testing.assert_array_equal(store.read(audio, "ab"), rows(audio, 9))
    assert store.missing(audio, ["a", "ab"]) == ["a"] and store.has(FRAME, "Ä")


def test_packing_twice_changes_nothing(store):
    pack(store.root)
    before = files(store.root)
    report = pack(store.root)
    assert (report.added, report.kept) == (0, 18)
    assert files(store.root) == before
    assert [pack(store.root, delete=True).deleted for _ in range(2)] == [18, 0]


def test_some_folders_are_packed_and_unpacked_alone(store):
    before, all_files = arrays(store), files(store.root)
    pack(store.root, [FACE.folder], delete=True)
    assert {path.parent.name for path in store.root.glob("*_*/*.npy")} == {FRAME.folder, AU.folder}
    pack(store.root, [AU.folder], delete=True)
    assert arrays(store) == before
    assert unpack(store.root, [FACE.folder]).written == 6
    assert list(Packed(str(store.root / "packed")).folders()) == [AU.folder]
    assert arrays(store) == before
    unpack(store.root, [AU.folder])
    assert files(store.root) == all_files


def test_folders_that_are_not_there_are_named(store):
    with pytest.raises(FeatureError, match="expected the folders nope, found au_TEXT_8frms, "):
        pack(store.root, ["nope"])
    with pytest.raises(FeatureError, match="expected packed features, found none"):
        unpack(store.root)
    with pytest.raises(FeatureError, match="found no such folder; see --save_root"):
        pack(store.root / "nope")
    assert not (store.root / "packed").exists()
    (store.root / "empty").mkdir()
    with pytest.raises(FeatureError, match=r"expected feature folders with \.npy files, found none"):
        pack(store.root, ["empty"])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((8, 5), np.float32), r"expected shape \[T, 6\], found \[8, 5\]"),
        (np.ones((2, 2, 6), np.float32), r"expected shape \[T, 6\], found \[2, 2, 6\]"),
        (np.float32(1), r"expected shape \[T, 6\], found \[\]"),
        (np.full((8, 6), np.nan, np.float32), "NaN"),
        (np.full((8, 6), 2, np.float32), "rows of length 1"),
        (np.ones((8, 6), int), "floating-point"),
        (np.array([[1, "x"]], dtype=object), "pickled"),
        (None, "cannot be read"),
    ],
)
def test_bad_arrays_stay_outside_and_are_named_in_one_sentence(store, array, message):
    path = store.path(AU, "bad")
    path.write_bytes(b"") if array is None else np.save(path, array, allow_pickle=True)
    report = pack(store.root, delete=True)
    assert (report.added, len(report.refused)) == (18, 1)
    with pytest.raises(FeatureError, match=message):
        raise FeatureError(report.refused[0])
    assert report.refused[0].startswith(str(path)) and "\n" not in report.refused[0]
    assert path.is_file()
    with pytest.raises(FeatureError, match=message):
        store.read(AU, "bad")


def test_width_and_sidecar_are_checked_at_every_read_of_a_pack(store):
    pack(store.root, delete=True)
    wide = FeatureSpec(Modality.FACE, "CLIP", dim=5)
    with pytest.raises(FeatureError, match="dim is 4, but the run expects 5"):
        FeatureStore(store.root, "toy").read(wide, "ab")
    sidecar = store.root / FACE.folder / "provenance.json"
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**content, "encoder": "OTHER"}))
    with pytest.raises(FeatureError, match=r"encoder is 'OTHER', but features .* packed when it was 'CLIP'"):
        FeatureStore(store.root, "toy").read(FACE, "ab")
    sidecar.unlink()
    assert FeatureStore(store.root, "toy").provenance(FACE) == content
    with pytest.raises(FeatureError, match="dim is 4, but the run expects 5"):
        FeatureStore(store.root, "toy").read(wide, "ab")


def test_width_is_checked_without_a_sidecar(tmp_path):
    folder = tmp_path / "toy" / FACE.folder
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", rows(FRAME, 1))
    pack(tmp_path / "toy", delete=True)
    with (
        pytest.warns(UserWarning, match="unknown origin"),
        pytest.raises(FeatureError, match=r"packed: face_CLIP_8frms/a\.npy: expected shape \[T, 5\], found \[3, 4\]"),
    ):
        FeatureStore(tmp_path, "toy").read(FeatureSpec(Modality.FACE, "CLIP", dim=5), "a")


def test_a_folder_that_was_deleted_cannot_be_made_differently_over_its_pack(store):
    pack(store.root, delete=True)
    shutil.rmtree(store.root / FACE.folder)
    with pytest.raises(FeatureError, match="weights is '1', but this run would write '2'"):
        FeatureStore(store.root, "toy").write(FACE, "new", rows(FACE, 1), {"weights": "2"})
    store.write(FACE, "new", rows(FACE, 1), {"weights": "1"})
    sidecar = store.root / FACE.folder / "provenance.json"
    sidecar.write_text(sidecar.read_text().replace('"1"', '"2"'))
    with pytest.raises(FeatureError, match="packed when it was '1'"):
        pack(store.root)


def test_unpacking_brings_a_lost_folder_back(store):
    before, sidecar = arrays(store), store.provenance(FACE)
    pack(store.root, delete=True)
    shutil.rmtree(store.root / FACE.folder)
    unpack(store.root)
    assert arrays(store) == before and store.provenance(FACE) == sidecar
