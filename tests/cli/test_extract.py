"""The one extraction script and the checker, on files as users have them."""

import json

import av
import numpy as np
import pandas as pd
import pytest
import soundfile

from affect.cli import extract as extract_features
from affect.cli import verify as verify_au_pipeline
from toy_clips import write_clips, write_table, write_video

EMBEDDED = ["--visual_encoder", "DCT", "--acoustic_encoder", "PROSODY", "--au_encoder", "HASHED_NGRAMS"]
DIMENSIONS = ["model.preextracted_visual_dim=128", "model.preextracted_acoustic_dim=64"]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, shared):
    """Features of the twelve real videos, made by the script."""
    root = tmp_path_factory.mktemp("real")
    code = extract_features.main(arguments(root, shared))
    return root, code


def arguments(root, shared, *more):
    real = shared / "data"
    places = ["--video_root", str(real / "video"), "--openface_root", str(real / "openface" / "featureextraction")]
    places += ["--mer-factory-output", str(root / "au"), "--save_root", str(root / "features")]
    return ["--dataset", "real", *places, *EMBEDDED, *more]


def check(root, *more):
    places = ["--mer-factory-output", str(root / "au"), "--save_root", str(root / "features")]
    return verify_au_pipeline.main(["--dataset", "real", *places, *EMBEDDED, *more])


def test_all_real_videos_pass_every_stage(extracted):
    root, code = extracted
    assert code == 0
    table = pd.read_csv(root / "features" / "real" / "clips.csv").set_index("name")
    assert len(table) == 12
    assert (table.status == "done").all()
    assert list(table.index[table.faceless]) == ["pyfeat_no_face"]


def test_the_faceless_clip_has_frames_and_sound_or_silence_but_no_au_rows(extracted):
    features = extracted[0] / "features" / "real"
    assert np.load(features / "au_HASHED_NGRAMS_8frms" / "pyfeat_no_face.npy").shape == (0, 512)
    assert np.load(features / "face_DCT_8frms" / "pyfeat_no_face.npy").shape == (0, 128)
    assert np.load(features / "frame_DCT_8frms" / "pyfeat_no_face.npy").shape == (8, 128)
    assert (features / "audio_PROSODY_8clips" / "pyfeat_no_face.npy").is_file()


def test_clips_that_show_a_face_half_the_time_have_face_and_au_rows(extracted):
    features = extracted[0] / "features" / "real"
    for name in ("pyfeat_face_noface", "pyfeat_noface_face"):
        assert 1 <= len(np.load(features / "face_DCT_8frms" / f"{name}.npy")) < 8
        assert 1 <= len(np.load(features / "au_HASHED_NGRAMS_8frms" / f"{name}.npy")) < 8
        assert len(np.load(features / "audio_PROSODY_8clips" / f"{name}.npy")) == 8


def test_a_second_run_makes_nothing(extracted, shared, capsys):
    root, _ = extracted
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")}
    assert extract_features.main(arguments(root, shared)) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")} == before


def test_the_checker_is_content_with_what_the_script_made(extracted, capsys):
    root, _ = extracted
    assert check(root, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert len({finding["clip"] for finding in report["findings"]}) == 12


@pytest.fixture
def copied(extracted, tmp_path):
    import shutil

    shutil.copytree(extracted[0], tmp_path / "copy")
    return tmp_path / "copy"


def faults(root, capsys, *more):
    assert check(root, "--json", *more) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    return {(finding["clip"], finding["check"]): finding["detail"] for finding in findings if not finding["ok"]}


def test_the_checker_finds_every_kind_of_fault(copied, capsys):
    au = copied / "features" / "real" / "au_HASHED_NGRAMS_8frms"
    np.save(au / "grid_bbaf2n.npy", np.load(au / "grid_bbaf2n.npy")[:3])
    np.save(au / "grid_brbk7n.npy", 2 * np.load(au / "grid_brbk7n.npy"))
    np.save(au / "grid_lbax4n.npy", np.full((8, 512), np.nan, np.float32))
    np.save(au / "grid_lbbc2a.npy", np.ones((8, 99), np.float32))
    (au / "grid_lrwp9a.npy").unlink()
    folder = copied / "au" / "real"
    (folder / "grid_swiz3n" / "grid_swiz3n_au_analysis.json").unlink()
    path = folder / "pyfeat_single_face" / "pyfeat_single_face_au_analysis.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "summary_description": {}}))
    found = faults(copied, capsys)
    assert set(found) == {
        ("grid_bbaf2n", "counts"),
        ("grid_brbk7n", "au"),
        ("grid_lbax4n", "au"),
        ("grid_lbbc2a", "au"),
        ("grid_lrwp9a", "au"),
        ("grid_swiz3n", "au_json"),
        ("pyfeat_single_face", "sentences"),
    }
    assert "rows of length 1" in found["grid_brbk7n", "au"]


def test_rows_of_measured_values_are_not_counted_against_sentences(copied, capsys):
    au = copied / "features/real/au_HASHED_NGRAMS_8frms"
    au = au.rename(au.with_name("au_AU_VALUES_8frms"))
    sidecar = au / "provenance.json"
    sidecar.write_text(sidecar.read_text().replace("HASHED_NGRAMS", "AU_VALUES"))
    np.save(au / "grid_bbaf2n.npy", np.load(au / "grid_bbaf2n.npy")[:3])
    capsys.readouterr()
    check(copied, "--au_encoder", "AU_VALUES", "--json")
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {each["check"] for each in findings if each["clip"] == "grid_bbaf2n" and each["ok"]} >= {"au_json", "au"}
    assert not {"counts", "sentences"} & {each["check"] for each in findings}


def test_the_checker_finds_action_units_of_another_maker(copied, capsys):
    path = copied / "au/real/grid_swiz3n/grid_swiz3n_au_analysis.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "provenance": {**content["provenance"], "tool": "py-feat (Detectorv1)"}}))
    found = faults(copied, capsys)
    assert set(found) == {("grid_swiz3n", "makers")}
    assert "measured_by is 'pyfeat', but 'openface' of the clips before it" in found["grid_swiz3n", "makers"]


def test_a_run_with_another_backend_says_what_it_would_measure_anew(copied, shared, capsys, monkeypatch):
    monkeypatch.setattr(extract_features, "check_installed", lambda args: None)
    (copied / "au/real/grid_swiz3n/grid_swiz3n_au_analysis.json").unlink()
    assert extract_features.main(arguments(copied, shared, "--modality", "au", "--au_backend", "pyfeat")) == 1
    out = capsys.readouterr().out
    assert "action units are by openface: 11 AU JSON are read as they are" in out
    assert "1 clips without one fail unless --au_backend is openface" in out


def test_the_checker_names_a_sidecar_that_is_no_json(copied, capsys):
    sidecar = copied / "features" / "real" / "au_HASHED_NGRAMS_8frms" / "provenance.json"
    sidecar.write_text("{")
    with pytest.raises(ValueError, match=r"provenance\.json: expected JSON that says how"):
        check(copied)


def test_the_checker_sees_au_json_with_and_without_the_folder_of_the_data_set(copied, capsys):
    flat = copied / "au" / "flat" / "flat_au_analysis.json"
    flat.parent.mkdir()
    flat.write_text("{")
    assert ("flat", "au_json") in faults(copied, capsys)


def test_the_checker_takes_no_clips_of_other_data_sets(copied, capsys):
    places = ["--mer-factory-output", str(copied / "au"), "--save_root", str(copied / "features")]
    with pytest.raises(ValueError, match="expected features or AU JSON of copy"):
        verify_au_pipeline.main(["--dataset", "copy", *places, *EMBEDDED])


def test_the_checker_compares_features_with_a_train_config(copied, tmp_path, capsys):
    config = tmp_path / "x.yaml"
    config.write_text(
        f"model: {{preextracted_visual_dim: 128, preextracted_acoustic_dim: 64}}\n"
        f"datasets: {{real: {{csv_path: {tmp_path / 'clips.csv'}, preextracted_root: {copied / 'features'},\n"
        f"  mer_factory_output: {copied / 'au'}, visual_encoder: DCT, acoustic_encoder: PROSODY,\n"
        f"  au_encoder: HASHED_NGRAMS}}}}\n"
    )
    pd.DataFrame({"name": ["grid_bbaf2n", "pyfeat_no_face"]}).to_csv(tmp_path / "clips.csv", index=False)
    assert verify_au_pipeline.main(["--cfg-path", str(config)]) == 0
    capsys.readouterr()
    sidecar = copied / "features" / "real" / "audio_PROSODY_8clips" / "provenance.json"
    sidecar.write_text(sidecar.read_text().replace("PROSODY", "OTHER"))
    assert verify_au_pipeline.main(["--cfg-path", str(config), "--json"]) == 1
    assert "encoder is 'OTHER'" in capsys.readouterr().out


def test_a_run_with_bad_clips_ends_with_code_one(tmp_path, shared, capsys):
    videos = tmp_path / "video"
    videos.mkdir()
    (videos / "bad.mp4").write_text("no video")
    code = extract_features.main(
        [
            "--dataset",
            "toy",
            "--modality",
            "frame",
            "--video_root",
            str(videos),
            "--save_root",
            str(tmp_path),
            *EMBEDDED,
        ]
    )
    assert code == 1
    assert "bad" in (tmp_path / "toy" / "failures.csv").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--csv_path", "no/such.csv"], "no such file"),
        ([], "no clips are named"),
        (["--video_root", "no/such/folder"], "expected a folder with clips"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        extract_features.main(
            ["--dataset", "toy", "--modality", "frame", "--save_root", str(tmp_path), *EMBEDDED, *more]
        )


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".m4a"])
def test_sound_files_alone_name_the_clips(tmp_path, suffix, capsys):
    (tmp_path / "sound").mkdir()
    path = tmp_path / "sound" / f"a{suffix}"
    if suffix == ".m4a":
        write_sound_only(path.with_suffix(".mp4"))
        path.with_suffix(".mp4").rename(path)
    else:
        soundfile.write(path, np.sin(np.arange(8000) / 9), 16000)
    places = ["--audio_root", str(tmp_path / "sound"), "--save_root", str(tmp_path)]
    assert extract_features.main(["--dataset", "toy", "--modality", "audio", *places, *EMBEDDED]) == 0
    assert "no clip has a source" not in capsys.readouterr().out
    assert extract_features.main(["--dataset", "toy", "--modality", "frame,audio", *places, *EMBEDDED]) == 1
    said = capsys.readouterr().out
    assert said.index("no clip has a source of frame (--video_root)") < said.index("alone with --modality audio\n")
    assert np.load(tmp_path / "toy/audio_PROSODY_8clips/a.npy").shape == (8, 64)


def shard_arguments(tmp_path, *more):
    folders = {kind: tmp_path / "clips" / kind for kind in ("video", "audio", "openface")}
    places = [f"--{kind}_root={folder}" for kind, folder in folders.items()]
    return ["--dataset", "toy", *places, "--save_root", str(tmp_path / "out"), *EMBEDDED, "--no-progress", *more]


def made(tmp_path):
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}


def test_shards_share_a_store_and_no_clip(tmp_path, capsys):
    names = [f"clip {i}" for i in range(8)]
    write_clips(tmp_path / "clips", names)
    assert extract_features.main(shard_arguments(tmp_path, "--num-shards", "2", "--shard-index", "0")) == 0
    first = made(tmp_path)
    assert 0 < len(first) < 4 * len(names)
    assert extract_features.main(shard_arguments(tmp_path, "--num_shards", "2", "--shard_index", "1")) == 0
    both = made(tmp_path)
    assert len(both) == 4 * len(names)
    assert {path: both[path] for path in first} == first
    table = pd.read_csv(tmp_path / "out" / "toy" / "clips.csv")
    assert sorted(table.name) == names
    assert extract_features.main(shard_arguments(tmp_path)) == 0  # one worker alone finds nothing left to do
    assert made(tmp_path) == both


def test_each_device_does_a_shard_of_its_own(tmp_path, capfd):
    write_clips(tmp_path / "clips", [f"clip {i}" for i in range(6)])
    assert extract_features.main(shard_arguments(tmp_path, "--devices", "cpu,cpu")) == 0
    assert len(made(tmp_path)) == 24
    logs = sorted(path.name for path in (tmp_path / "out" / "toy" / "journal").glob("*.jsonl"))
    assert logs == ["0of2.jsonl", "1of2.jsonl"]


@pytest.mark.parametrize("devices", ["cuda:0,cuda:1", "cuda:x"])
def test_a_device_that_does_not_exist_is_refused_before_any_process_starts(tmp_path, monkeypatch, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(extract_features.subprocess, "Popen", None)
    with pytest.raises(ValueError, match=f"{devices[-6:]} does not exist"):
        extract_features.main(shard_arguments(tmp_path, "--devices", devices))
    assert extract_features.only_device("cuda:0")[1]["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "long"])
def test_a_time_limit_that_is_none_is_refused(tmp_path, text, capsys):
    with pytest.raises(SystemExit):
        extract_features.main(shard_arguments(tmp_path, f"--time_limit={text}"))
    assert "expected a number of seconds above 0" in capsys.readouterr().err


def write_sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])


def test_every_kind_of_bad_input_is_listed_and_the_good_clip_is_done(tmp_path, shared, capsys):
    names = ["good", "empty", "text", "cut", "twice", "mute", "rate", "one frame", "söund only", "avi inside"]
    write_clips(tmp_path / "clips", names)
    video, audio = (tmp_path / "clips" / kind for kind in ("video", "audio"))
    (video / "empty.mp4").write_bytes(b"")
    (video / "text.mp4").write_text("this is no video")
    real = (shared / "data" / "video" / "pyfeat_single_face.mp4").read_bytes()
    (video / "cut.mp4").write_bytes(real[: len(real) // 2])
    (video / "twice.avi").write_bytes((video / "twice.mp4").read_bytes())
    write_video(video / "one frame.mp4", frames=1)
    write_table(tmp_path / "clips/openface/one frame.csv", frames=1)
    write_video(video / "inside.avi")
    (video / "inside.avi").replace(video / "avi inside.mp4")
    write_sound_only(video / "söund only.mp4")
    soundfile.write(audio / "mute.wav", np.zeros(0), 16000)
    soundfile.write(audio / "rate.wav", np.random.default_rng(0).uniform(-1, 1, (96000, 2)), 48000, subtype="PCM_U8")
    pd.DataFrame({"name": [*names, "../up", "good"]}).to_csv(tmp_path / "list.csv", index=False)
    code = extract_features.main(shard_arguments(tmp_path, "--csv_path", str(tmp_path / "list.csv")))
    assert code == 1
    root = tmp_path / "out" / "toy"
    failures = pd.read_csv(root / "failures.csv").groupby("clip").stage.agg(set).to_dict()
    assert failures == {
        "empty": {"frame", "face"},
        "text": {"frame", "face"},
        "cut": {"frame", "face"},
        "twice": {"name"},
        "söund only": {"frame", "face"},
        "../up": {"name"},
    }
    assert np.load(root / "frame_DCT_8frms" / "one frame.npy").shape == (8, 128)
    assert np.load(root / "frame_DCT_8frms" / "avi inside.npy").shape == (8, 128)
    clips = pd.read_csv(root / "clips.csv").set_index("name")
    assert clips.status["good"] == clips.status["mute"] == clips.status["rate"] == "done"
    assert clips.silent["mute"]
    assert len(np.load(root / "audio_PROSODY_8clips" / "rate.npy")) == 8
    assert len(np.load(root / "audio_PROSODY_8clips" / "text.npy")) == 8  # a clip keeps what can be read of it


def test_a_target_that_cannot_be_written_ends_the_run_with_one_sentence(tmp_path, capsys):
    write_clips(tmp_path / "clips", ["a"])
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="out"):
        extract_features.main(shard_arguments(tmp_path))
