import json

import numpy as np
import pytest

from affect.schema import Modality
from affect.store import FeatureError, FeatureSpec, FeatureStore, feature_folder

FRAME = FeatureSpec(Modality.FRAME, "CLIP_VIT_LARGE", dim=4)
AU = FeatureSpec(Modality.AU, "CLIP_VITB32", dim=4)


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ((Modality.FRAME, "CLIP_VIT_LARGE"), "frame_CLIP_VIT_LARGE_8frms"),
        ((Modality.FRAME, "CLIP_VIT_LARGE", 4, "emotion_peak"), "frame_CLIP_VIT_LARGE_emotion_peak_4frms"),
        ((Modality.FACE, "CLIP_VIT_LARGE"), "face_CLIP_VIT_LARGE_8frms"),
        ((Modality.AUDIO, "HUBERT_LARGE"), "audio_HUBERT_LARGE_8clips"),
        ((Modality.AU, "CLIP_VITB32"), "au_CLIP_VITB32_8frms"),
        ((Modality.FACE, "hf:../some/model"), "face_hf-..-some-model_8frms"),
    ],
)
def test_folder_names_are_those_that_users_have(arguments, folder):
    assert feature_folder(*arguments) == folder


def test_what_is_written_is_read(tmp_path):
    store = FeatureStore(tmp_path, "MELD")
    array = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    path = store.write(FRAME, "a", array, {"layer": "last"})
    assert path == tmp_path / "meld" / "frame_CLIP_VIT_LARGE_8frms" / "a.npy"
    np.testing.assert_array_equal(store.read(FRAME, "a"), array)


def test_root_may_name_the_data_set_already(tmp_path):
    assert FeatureStore(tmp_path / "meld", "MELD").root == tmp_path / "meld"


def test_the_spelling_with_the_sampling_is_read_too(tmp_path):
    folder = tmp_path / "meld" / "frame_CLIP_VIT_LARGE_uniform_8frms"
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.ones((8, 4), np.float16))
    with pytest.warns(UserWarning, match="unknown origin"):
        assert FeatureStore(tmp_path, "meld").read(FRAME, "a").dtype == np.float32


def test_a_vector_is_one_row_and_no_rows_mean_absent(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(FRAME, "absent", np.zeros((0, 4), np.float32), {})
    assert store.read(FRAME, "absent").shape == (0, 4)
    np.save(store.path(FRAME, "vector"), np.ones(4, np.float32))
    assert store.read(FRAME, "vector").shape == (1, 4)


def test_a_missing_feature_names_clip_path_and_command(tmp_path):
    with pytest.raises(FeatureError, match=r"'a'.*frame_CLIP_VIT_LARGE_8frms/a\.npy.*extract_features\.py"):
        FeatureStore(tmp_path, "meld").read(FRAME, "a")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((8, 5), np.float32), r"expected shape \[T, 4\], found \[8, 5\]"),
        (np.full((8, 4), np.nan, np.float32), "NaN"),
        (np.array([[1, "x"]], dtype=object), "cannot be read"),
        (np.ones((8, 4), int), "floating-point"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*unknown origin")
def test_bad_arrays_are_refused_in_one_sentence(tmp_path, array, message):
    store = FeatureStore(tmp_path, "meld")
    path = store.path(FRAME, "a")
    path.parent.mkdir(parents=True)
    np.save(path, array, allow_pickle=True)
    with pytest.raises(FeatureError, match=message) as error:
        store.read(FRAME, "a")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_cut_file_is_refused(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    path = store.write(FRAME, "a", np.ones((8, 4), np.float32), {})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FeatureError, match="cannot be read"):
        store.read(FRAME, "a")


def test_au_rows_must_have_length_one(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(AU, "a", np.full((3, 4), 2, np.float32), {})
    with pytest.raises(FeatureError, match="rows of length 1"):
        store.read(AU, "a")


def test_a_folder_of_another_encoder_is_refused(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    path = store.write(FRAME, "a", np.ones((8, 4), np.float32), {})
    sidecar = path.with_name("provenance.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "encoder": "OTHER"}))
    with pytest.raises(FeatureError, match="encoder is 'OTHER', but the run expects 'CLIP_VIT_LARGE'"):
        FeatureStore(tmp_path, "meld").read(FRAME, "a")


def test_two_ways_of_making_do_not_mix_in_one_folder(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(FRAME, "a", np.ones((8, 4), np.float32), {"weights": "1", "versions": {"torch": "1"}})
    store.write(FRAME, "b", np.ones((8, 4), np.float32), {"weights": "1", "versions": {"torch": "2"}})
    with pytest.raises(FeatureError, match="weights is '1', but this run would write '2'"):
        store.write(FRAME, "c", np.ones((8, 4), np.float32), {"weights": "2"})


def test_names_cannot_leave_the_store(tmp_path):
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        FeatureStore(tmp_path, "meld").read(FRAME, "../../etc/passwd")
