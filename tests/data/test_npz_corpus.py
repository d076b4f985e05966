import io
import pickle
import zipfile

import numpy as np
import pytest

from affect.data.npz_corpus import read_npz


def write_pickle(path, content: bytes):
    """Write an .npz file whose one array is a pickle of our choice."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test_corpus.npy", header.getvalue() + content)
    return path


def test_labels_come_back_as_plain_values(tmp_path):
    corpus = {
        "a": {"emo": np.int64(3), "val": np.float32(-0.5), "words": ["x", ("y", None)]},
        "b": {"emo": np.str_("sad"), "val": 1.0, "seen": np.bool_(True), "none": np.str_("")},
    }
    np.savez(tmp_path / "label.npz", test_corpus=corpus)
    found = read_npz(tmp_path / "label.npz")["test_corpus"]
    assert found == corpus
    assert {type(found["a"]["emo"]), type(found["b"]["emo"]), type(found["a"]["val"])} == {int, str, float}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["happy", "sad"]),
        np.array(5, dtype=">i4"),
        np.array([{"a": 1}, [1, 2]], dtype=object),
        np.asfortranarray(np.array([[{"a": 1}, None, 3], [[1], "x", 4]], dtype=object)),
    ],
)
def test_arrays_are_what_numpy_reads(tmp_path, array):
    np.savez(tmp_path / "x.npz", outside=array, inside={"array": array})
    found = read_npz(tmp_path / "x.npz")
    assert found["outside"] == array.tolist()
    assert found["inside"]["array"] == np.atleast_1d(array).tolist()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_protocols_of_python_3_are_read(tmp_path, protocol):
    array = np.array({"a": {"emo": np.int32(1)}}, dtype=object)
    write_pickle(tmp_path / "x.npz", pickle.dumps(array, protocol))
    assert read_npz(tmp_path / "x.npz") == {"test_corpus": {"a": {"emo": 1}}}


class Open:
    """Writes a file when it is unpickled by a reader that trusts it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", test_corpus={"a": {"emo": Open(tmp_path / "touched")}})
    with pytest.raises(
        ValueError, match=r"bad\.npz: expected an \.npz file of plain values, but .* it asks for .*open"
    ):
        read_npz(tmp_path / "bad.npz")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cos\nsystem\n(S'touch touched'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x.npy'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'/etc/hostname'\ntR.",
        b"caffect.data.npz_corpus\nread_npz\n(S'x'\ntR.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.",  # STACK_GLOBAL
        b"(ios\nsystem\n.",  # INST
        b"\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
    ],
)
def test_no_way_of_asking_for_a_function_works(tmp_path, call):
    with pytest.raises(ValueError, match=r"x\.npz: expected an \.npz file of plain values"):
        read_npz(write_pickle(tmp_path / "x.npz", call))


class Number:
    """A number of numpy whose type is pickled with a state of our choice."""

    def __init__(self, kind, state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        if isinstance(self.state, bytes):
            return np._core.multiarray.scalar, (Number(self.kind, None), self.state)
        return np.dtype, (self.kind, False, True), (3, "<", None, None, None, 10**9, 1, 0)


def test_the_size_that_a_type_claims_does_not_count(tmp_path):
    """numpy takes such a state at its word and reads a gigabyte beyond the eight bytes that are there."""
    np.savez(tmp_path / "x.npz", test_corpus={"a": Number("f8", np.float64(1.5).tobytes())})
    assert read_npz(tmp_path / "x.npz") == {"test_corpus": {"a": 1.5}}


@pytest.mark.parametrize(("kind", "content"), [("V8", b"12345678"), ("f8", b"1234"), ("S999999999", b"1"), ("M8", b"")])
def test_values_of_no_plain_type_or_too_few_bytes_are_refused(tmp_path, kind, content):
    np.savez(tmp_path / "x.npz", test_corpus={"a": Number(kind, content)})
    with pytest.raises(ValueError, match=r"expected an \.npz file of plain values"):
        read_npz(tmp_path / "x.npz")


def test_an_array_that_says_it_is_larger_than_it_is_is_refused(tmp_path):
    whole = pickle.dumps(np.array({"a": np.arange(4, dtype=np.int8)}, dtype=object), 3)
    grown = whole.replace(b"K\x04\x85", b"K\x44\x85")
    assert grown != whole
    with pytest.raises(ValueError, match=r"expected an \.npz file of plain values"):
        read_npz(write_pickle(tmp_path / "x.npz", grown))


@pytest.mark.parametrize("content", [b"no archive", b"", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: expected an \.npz file"):
        read_npz(tmp_path / "x.npz")


def test_a_cut_off_pickle_is_refused(tmp_path):
    whole = pickle.dumps(np.array({"a": {"emo": 1}}, dtype=object))
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"expected an \.npz file of plain values"):
            read_npz(write_pickle(tmp_path / "x.npz", whole[:length]))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"label\.npz: no such file"):
        read_npz(tmp_path / "label.npz")


@pytest.mark.parametrize(
    "call",
    [
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",  # bytes
        b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",  # text
        b"\x80\x04Nr" + (2**31 - 1).to_bytes(4, "little") + b".",  # its place among the values met
    ],
)
def test_lengths_beyond_the_end_are_refused_before_memory_is_taken(tmp_path, call):
    with pytest.raises(ValueError, match=r"x\.npz: expected an \.npz file of plain values"):
        read_npz(write_pickle(tmp_path / "x.npz", call))


@pytest.mark.parametrize("shape", [(10**9, 0), (10**9,)])
def test_empty_values_without_number_are_refused(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<U0", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(ValueError, match="has 0 bytes"):
        read_npz(tmp_path / "x.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(9_000_000))
    with pytest.raises(ValueError, match=r"x\.npz: expected at most 512 MB"):
        read_npz(tmp_path / "x.npz")
