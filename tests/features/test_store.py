import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from affect.core.schema import Modality
from affect.features.packing import pack
from affect.features.store import FeatureError, FeatureSpec, FeatureStore, feature_folder

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
        ((Modality.FACE, "hf:org/model"), "face_hf-org--model_8frms"),
        ((Modality.FACE, "hf:../some/model"), "face_hf-model_8frms"),
        ((Modality.FACE, "hf:/models/some dir/"), "face_hf-some-dir_8frms"),
        ((Modality.FRAME, "fer:runs/7/best.pth"), "frame_fer-best.pth_8frms"),
        ((Modality.FRAME, "open_clip:ViT-B-16/laion2b"), "frame_open_clip-ViT-B-16--laion2b_8frms"),
        ((Modality.AU, "open_clip:ViT-B-16//home/me/b16.pt"), "au_open_clip-ViT-B-16--b16.pt_8frms"),
        ((Modality.AU, "open_clip:ViT-L-14//home/me/b16.pt"), "au_open_clip-ViT-L-14--b16.pt_8frms"),
        ((Modality.AUDIO, "hf:C:\\models\\wavlm"), "audio_hf-wavlm_8clips"),
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


def test_only_uniform_frames_have_another_spelling():
    folder = "frame_CLIP_VIT_LARGE"
    assert FRAME.folders == (f"{folder}_8frms", f"{folder}_uniform_8frms")
    peaks = FeatureSpec(Modality.FRAME, "CLIP_VIT_LARGE", 4, sampling="emotion_peak")
    assert peaks.folders == (f"{folder}_emotion_peak_8frms",)
    assert AU.folders == (AU.folder,) == ("au_CLIP_VITB32_8frms",)


def test_a_sidecar_is_laid_out_for_people(tmp_path):
    path = FeatureStore(tmp_path, "meld").write(FRAME, "a", np.ones((8, 4), np.float32), {"weights": "1", "layer": "x"})
    lines = path.with_name("provenance.json").read_text().splitlines()
    assert lines[1:-1] == sorted(lines[1:-1])
    assert lines[1] == ' "count": 8,'
    assert ' "sampling": "uniform",' in lines
    store = FeatureStore(tmp_path, "meld")
    store.write(AU, "a", np.eye(4, dtype=np.float32), {})
    assert "sampling" not in store.provenance(AU)  # only frames are sampled in more than one way


def test_features_of_unknown_origin_are_told_to_whoever_reads_them(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(FRAME, "a", np.ones((8, 4), np.float32), {}).with_name("provenance.json").unlink()
    with pytest.warns(UserWarning, match="frame_CLIP_VIT_LARGE_8frms has no") as told:
        for _ in range(2):
            FeatureStore.read(store, FRAME, "a")
    assert [warning.filename for warning in told] == [__file__]


def test_a_store_is_known_by_where_it_is_and_not_by_what_it_has_looked_at(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(FRAME, "a", np.ones((8, 4), np.float32), {})
    store.read(FRAME, "a")
    assert store == FeatureStore(tmp_path, "meld") != FeatureStore(tmp_path, "mosi")
    assert repr(store) == f"FeatureStore(root={store.root!r}, dataset='meld')"
    with pytest.raises(TypeError):
        FeatureStore(tmp_path, "meld", {})


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
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(FeatureError, match=r"'a'.*_8frms/a\.npy.*extract_feat"),
    ):
        FeatureStore(tmp_path, "meld").read(FRAME, "a")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((8, 5), np.float32), r"expected shape \[T, 4\], found \[8, 5\]"),
        (np.full((8, 4), np.nan, np.float32), "NaN"),
        (np.full((8, 4), 1e300), "NaN or infinity"),
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
    for name, length in (("a", 2.0), ("b", 0.5)):
        store.write(AU, name, np.full((3, 4), length, np.float32), {})
    assert store.read(AU, "b").shape == (3, 4)
    with pytest.raises(FeatureError, match="rows of length 1"):
        store.read(AU, "a")


def test_a_folder_of_another_encoder_is_refused(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    path = store.write(FRAME, "a", np.ones((8, 4), np.float32), {})
    sidecar = path.with_name("provenance.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "encoder": "OTHER"}))
    with pytest.raises(FeatureError, match="encoder is 'OTHER', but the run expects 'CLIP_VIT_LARGE'"):
        FeatureStore(tmp_path, "meld").read(FRAME, "a")


def test_frames_of_another_geometry_are_refused_where_a_run_says_which(tmp_path):
    squashed, cropped = (replace(FRAME, geometry=geometry) for geometry in ("squash", "crop"))
    assert squashed == cropped == FRAME
    FeatureStore(tmp_path, "meld").write(cropped, "a", np.ones((8, 4), np.float32), {})
    for spec in (FRAME, cropped):
        assert FeatureStore(tmp_path, "meld").read(spec, "a").shape == (8, 4)
    with pytest.raises(FeatureError, match="frame_geometry is 'crop', but the run expects 'squash'"):
        FeatureStore(tmp_path, "meld").read(squashed, "a")


def test_two_ways_of_making_do_not_mix_in_one_folder(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(FRAME, "a", np.ones((8, 4), np.float32), {"weights": "1", "versions": {"torch": "1"}})
    store.write(FRAME, "b", np.ones((8, 4), np.float32), {"weights": "1", "versions": {"torch": "2"}})
    with pytest.raises(FeatureError, match="weights is '1', but this run would write '2'"):
        store.write(FRAME, "c", np.ones((8, 4), np.float32), {"weights": "2"})


def test_hub_ids_that_differ_have_folders_that_differ():
    encoders = ["hf:a/b-c", "hf:a-b/c", "hf:a/b", "hf:a-b", "open_clip:a/b", "fer:a/b"]
    assert len({feature_folder(Modality.FACE, encoder) for encoder in encoders}) == len(encoders)


def test_packed_features_are_known_and_checked_as_files_are(tmp_path):
    store, array = FeatureStore(tmp_path, "meld"), np.ones((8, 4), np.float32)
    store.write(FRAME, "a", array, {})
    pack(store.root, delete=True)
    (store.root / FRAME.folder / "provenance.json").unlink()  # the pack knows it too
    store.write(AU, "b", array / 2, {})
    reader = FeatureStore(tmp_path, "meld")
    assert reader.missing(FRAME, ["a", "b"]) == ["b"]
    assert [reader.has_folder(spec) for spec in (FRAME, AU, replace(AU, encoder="OTHER"))] == [True, True, False]
    np.testing.assert_array_equal(reader.read(FRAME, "a"), array)
    with pytest.raises(FeatureError, match="dim is 4, but the run expects 5"):
        reader.read(replace(FRAME, dim=5), "a")


@pytest.mark.parametrize(
    "path", ["runs/rafdb", "/data/runs/rafdb/", "rafdb/best.safetensors", "/data/runs/rafdb/best.safetensors"]
)
def test_a_run_of_the_image_track_is_called_by_its_folder(path):
    assert feature_folder(Modality.FACE, f"fer:{path}") == "face_fer-rafdb_8frms"
    last = f"fer:{path.removesuffix('/').removesuffix('/best.safetensors')}/last.safetensors"
    assert feature_folder(Modality.FACE, last) == "face_fer-rafdb--last.safetensors_8frms"


def test_features_move_with_their_model_to_another_machine(tmp_path):
    here = FeatureSpec(Modality.FACE, "hf:/data/models/some dir", dim=4)
    there = FeatureSpec(Modality.FACE, "hf:/mnt/x/some dir", dim=4)
    store = FeatureStore(tmp_path, "meld")
    store.write(here, "a", np.ones((8, 4), np.float32), {"weights": "1"})
    assert store.provenance(here)["encoder"] == "hf:some dir"
    assert "/data" not in store.path(here, "a").with_name("provenance.json").read_text()
    assert FeatureStore(tmp_path, "meld").read(there, "a").shape == (8, 4)
    store.write(there, "b", np.ones((8, 4), np.float32), {"weights": "1"})


def test_models_of_the_same_last_name_do_not_mix(tmp_path):
    one, other = (FeatureSpec(Modality.FACE, f"hf:/{folder}/model", dim=4) for folder in "ab")
    FeatureStore(tmp_path, "meld").write(one, "a", np.ones((8, 4), np.float32), {"weights": "1"})
    with pytest.raises(FeatureError, match="weights is '1', but this run would write '2'"):
        FeatureStore(tmp_path, "meld").write(other, "b", np.ones((8, 4), np.float32), {"weights": "2"})


def test_sidecar_is_compared_once_a_run(tmp_path, monkeypatch):
    store, array = FeatureStore(tmp_path, "meld"), np.ones((8, 4), np.float32)
    store.write(FRAME, "a", array, {"weights": "1"})
    store.read(FRAME, "a")
    monkeypatch.setattr("affect.features.store.read_sidecar", lambda _: pytest.fail("the sidecar was read again"))
    store.write(FRAME, "b", array, {"weights": "1"})
    store.read(FRAME, "b")
    store.read(replace(FRAME), "b")


def test_a_folder_deleted_in_the_middle_of_a_run_gets_its_sidecar_again(tmp_path):
    store, array = FeatureStore(tmp_path, "meld"), np.ones((8, 4), np.float32)
    shutil.rmtree(store.write(FRAME, "a", array, {"weights": "1"}).parent)
    store.write(FRAME, "b", array, {"weights": "1"})
    assert store.provenance(FRAME)["weights"] == "1"


def test_what_is_there_is_known_without_reading_it(tmp_path):
    store = FeatureStore(tmp_path, "meld")
    store.write(FRAME, "a", np.zeros((0, 4), np.float32), {})
    store.write(AU, "b", np.zeros((0, 4), np.float32), {})
    assert store.has(FRAME, "a") and not store.has(FRAME, "b")
    assert store.missing(FRAME, iter(["b", "a", "c"])) == ["b", "c"]
    assert store.names() == {"a", "b"}


def test_names_cannot_leave_the_store(tmp_path):
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        FeatureStore(tmp_path, "meld").read(FRAME, "../../etc/passwd")
