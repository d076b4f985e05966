"""Arrays read from .npy files: as numpy reads them, and never anything that is not whole, finite and of its width."""

import io

import numpy as np
import pytest

from affect.features.arrays import FeatureError, check_unit_rows, parse_npy, read_array


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_every_layout_of_numbers_is_read_as_numpy_reads_it(tmp_path, dtype, order):
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy", 4)
    np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy").astype(np.float32))
    assert found.dtype == np.float32
    found += 1  # the caller's own


def test_an_archive_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", np.ones((2, 4)))
    with pytest.raises(FeatureError, match="it is an archive"):
        read_array(tmp_path / "a.npz", 4)


def test_what_needs_no_conversion_is_not_copied(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    assert not read_array(tmp_path / "a.npy", 4).flags.owndata


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("length", [118, 300, 1000])
def test_headers_of_every_length_and_version_are_read(version, length):
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    text = str(np.lib.format.header_data_from_array_1_0(array)).encode().ljust(length - 1) + b"\n"
    head = np.lib.format.magic(*version) + length.to_bytes(2 if version == (1, 0) else 4, "little") + text
    np.testing.assert_array_equal(np.load(io.BytesIO(head + array.tobytes())), array)  # numpy agrees that it is one
    np.testing.assert_array_equal(parse_npy(bytearray(head + array.tobytes()), "a.npy"), array)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((4,), (1, 4)), ((4, 4), (4, 4)), ((0, 4), (0, 4)), ((3,), None), ((4, 1), None), ((2, 2, 4), None)],
)
def test_a_vector_of_the_width_is_one_row_and_nothing_else_becomes_rows(tmp_path, shape, rows):
    np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
    if rows:
        assert read_array(tmp_path / "a.npy", 4).shape == rows
    else:
        with pytest.raises(FeatureError, match=r"expected shape \[T, 4\], found \[" + ", ".join(map(str, shape))):
            read_array(tmp_path / "a.npy", 4)


@pytest.mark.parametrize(("length", "good"), [(1, True), (1.009, True), (0.991, True), (1.02, False), (0.98, False)])
def test_rows_of_sentences_have_length_one_within_a_hundredth(length, good):
    rows = np.full((2, 4), 0.5)
    rows[1] *= length
    if good:
        check_unit_rows(rows, "a.npy")
    else:
        with pytest.raises(FeatureError, match=f"found {min(length, 1):.3f} to {max(length, 1):.3f}"):
            check_unit_rows(rows, "a.npy")
