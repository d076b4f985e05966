"""Answers through the script: for a data set and for single real clips."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

from affect.answer import answerer
from affect.answer.answerer import show
from affect.answer.files import Answer
from affect.cli import answer as inference
from affect.cli.live import warn_of_other_features
from affect.core.au_json import au_json_path, write_au_json
from affect.core.files import locked
from affect.core.schema import Modality
from affect.data.config import ConfigError
from affect.features.store import FeatureStore
from extractors.au.openface import analyse_openface
from toy_answers import answers_file, records, train_tiny

EMBEDDED = {Modality.FRAME: ("DCT", 128), Modality.AUDIO: ("PROSODY", 64), Modality.AU: ("HASHED_NGRAMS", 512)}


@pytest.fixture
def trained(tiny_world, tmp_path):
    """A checkpoint of the tiny run and an evaluation file that names it."""
    return train_tiny(tiny_world, tmp_path)


def test_a_data_set_is_answered_into_json_lines(trained, tmp_path, capsys):
    inference.main(["--cfg-path", str(trained)])
    (file,) = (tmp_path / "results-toy" / "run").glob("checkpoint_000001_*-description.jsonl")
    answers = records(file)
    assert [answer["name"] for answer in answers] == ["c8", "c9", "c10", "c11"]  # the test split
    assert answers[0]["labels"] == ["happy"]
    assert set(answers[0]["streams"]) == {"multi", "audio", "face", "frame", "au"}
    assert "c8" in capsys.readouterr().out


def test_a_clip_with_a_bad_array_is_listed_and_the_others_are_answered(trained, tmp_path):
    (path,) = (tmp_path / "features" / "toy").glob("audio_*/c9.npy")
    np.save(path, np.full((8, 10), np.nan, np.float32))
    assert inference.main(["--cfg-path", str(trained)]) == 1
    (file,) = (tmp_path / "results-toy" / "run").glob("*.jsonl")
    assert [answer["name"] for answer in records(file)] == ["c8", "c10", "c11"]
    assert "c9" in (tmp_path / "results-failures.csv").read_text()


def test_a_stopped_run_goes_on_and_an_overwritten_one_begins_anew(trained, tmp_path, capsys):
    inference.main(["--cfg-path", str(trained)])
    file = answers_file(tmp_path)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:20])  # as a kill leaves it
    capsys.readouterr()
    inference.main(["--cfg-path", str(trained)])
    assert file.read_text() == "".join(lines)
    assert "2 answers and 2 from before" in capsys.readouterr().out
    assert np.load(next(file.parent.glob("*.npz")), allow_pickle=True)["name2reason"].tolist().keys() == {
        "c8",
        "c9",
        "c10",
        "c11",
    }
    with pytest.raises(ValueError, match=r"other settings \(max_new_tokens\); give --overwrite"):
        inference.main(["--cfg-path", str(trained), "--options", "inference.max_new_tokens=4"])
    inference.main(["--cfg-path", str(trained), "--overwrite", "--options", "inference.max_new_tokens=4"])
    assert len(records(file)) == 4


def test_a_second_process_does_not_answer_into_the_same_file(trained, tmp_path):
    inference.main(["--cfg-path", str(trained)])
    file = answers_file(tmp_path)
    before = file.read_bytes()
    with (
        locked(file.with_name(f".{file.name}.lock"), ""),
        pytest.raises(ValueError, match="jsonl: another process answ"),
    ):
        inference.main(["--cfg-path", str(trained), "--overwrite"])
    assert file.read_bytes() == before


def test_clips_that_failed_are_answered_when_their_features_are_there(trained, tmp_path):
    (path,) = (tmp_path / "features" / "toy").glob("audio_*/c9.npy")
    content = path.read_bytes()
    path.unlink()
    assert inference.main(["--cfg-path", str(trained)]) == 1
    path.write_bytes(content)
    assert inference.main(["--cfg-path", str(trained)]) == 0
    assert [answer["name"] for answer in records(answers_file(tmp_path))] == ["c8", "c10", "c11", "c9"]
    assert not (tmp_path / "results-failures.csv").exists()


def test_each_checkpoint_of_some_epochs_has_a_file_of_its_own(tiny_world, tmp_path, monkeypatch):
    tiny_world.run.init_lr = 0.3  # so that they answer differently
    file = train_tiny(tiny_world, tmp_path, epochs=4)
    loaded, load_model = [], answerer.load_model
    monkeypatch.setattr(answerer, "load_model", lambda *values: loaded.append(values) or load_model(*values))
    flags = ["--test_epochs", "2-4", "--skip_epoch", "2", "--options", "inference.test_epoch=1"]
    inference.main(["--cfg-path", str(file), *flags])  # what is typed counts before the file's one epoch
    assert len(loaded) == 1
    folder = tmp_path / "results-toy" / "run"
    assert sorted(path.name[:17] for path in folder.glob("*.jsonl")) == ["checkpoint_000002", "checkpoint_000004"]
    together = [records(answers_file(tmp_path, epoch=epoch)) for epoch in (2, 4)]
    assert together[0] != together[1]
    alone = tmp_path / "alone"
    options = ["inference.test_epoch=4", f"inference.base_root={alone}/results"]
    inference.main(["--cfg-path", str(file), "--options", *options])
    assert records(answers_file(alone, epoch=4)) == together[1]


def test_what_the_queries_read_is_kept_and_drawn(trained, tmp_path):
    inference.main(["--cfg-path", str(trained), "--attention", "--show", "1"])
    (folder,) = (tmp_path / "results-toy" / "run").glob("*-attention")
    assert sorted(path.name for path in folder.iterdir()) == ["c10.npz", "c11.npz", "c8.npz", "c8.png", "c9.npz"]


def test_a_pre_fusion_without_queries_is_named_before_the_model_is_loaded(tiny_world, tmp_path, monkeypatch):
    tiny_world.model.multi_fusion_type = "attention"
    file = train_tiny(tiny_world, tmp_path)
    monkeypatch.setattr(answerer, "load_model", None)
    with pytest.raises(ValueError, match="--attention: expected a pre-fusion with queries"):
        inference.main(["--cfg-path", str(file), "--attention"])


def test_features_of_another_encoder_stop_the_run_before_the_model_is_loaded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(answerer, "load_model", None)
    for sidecar in (tmp_path / "features/toy").glob("face_*/provenance.json"):
        sidecar.write_text(sidecar.read_text().replace('"encoder": "V"', '"encoder": "W"'))
    with pytest.raises(ValueError, match="encoder is 'W', but the run expects 'V'"):
        inference.main(["--cfg-path", str(trained)])


def test_an_unknown_data_set_is_named(trained):
    with pytest.raises(ValueError, match="--dataset nope: expected one of toy"):
        inference.main(["--cfg-path", str(trained), "--dataset", "nope"])


def test_a_broken_au_json_costs_the_units_and_not_the_answer(trained, tmp_path):
    path = au_json_path(tmp_path / "au", "toy", "c8")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    inference.main(["--cfg-path", str(trained), "--options", f"inference.mer_factory_output={tmp_path / 'au'}"])
    (file,) = (tmp_path / "results-toy" / "run").glob("*.jsonl")
    assert len(records(file)) == 4


def test_answers_that_look_like_markup_are_printed_as_they_are(capsys):
    answer = Answer("a[x]", "toy", "?", "so [/laughs] happy", [], [])
    show(Console(), answer)
    assert "a[x]" in (shown := capsys.readouterr().out)
    assert "[/laughs]" in shown


@pytest.mark.parametrize("flag", ["--no_reasoning", "--zeroshot"])
def test_labels_only_asks_the_other_question(trained, tmp_path, flag):
    inference.main(["--cfg-path", str(trained), flag])
    (file,) = (tmp_path / "results-toy" / "run").glob("*-ovlabel.jsonl")
    assert records(file)[0]["question"].startswith("Which emotions")


def test_streams_can_be_left_out_to_see_what_answers_rest_on(trained, tmp_path, capsys):
    inference.main(["--cfg-path", str(trained), "--options", "inference.without=[audio, face]"])
    (file,) = (tmp_path / "results-toy" / "run").glob("*.jsonl")
    assert records(file)[0]["streams"] == ["multi", "frame", "au"]
    assert records(file)[0]["missing"] == records(file)[0]["withheld"] == ["face", "audio"]
    assert "left out: face, sound" in capsys.readouterr().out


def test_answers_carry_the_action_units_of_their_clip(trained, tmp_path, shared):
    table = shared / "data/openface/featureextraction/pyfeat_single_face.csv"
    write_au_json(analyse_openface(table), au_json_path(tmp_path / "au", "toy", "c8"))
    inference.main(["--cfg-path", str(trained), "--options", f"inference.mer_factory_output={tmp_path / 'au'}"])
    (file,) = (tmp_path / "results-toy" / "run").glob("*.jsonl")
    units = records(file)[0]["action_units"]
    assert units["AU12"] > 0.8
    assert list(units.values()) == sorted(units.values(), reverse=True)
    assert records(file)[1]["action_units"] == {}


def test_a_model_section_that_is_not_the_checkpoints_is_refused(trained):
    with pytest.raises(ConfigError, match=r"model\.num_multi_query_token: the checkpoint .* has 4, found 9"):
        inference.main(["--cfg-path", str(trained), "--options", "model.num_multi_query_token=9"])


def test_a_missing_checkpoint_is_named(trained, tmp_path):
    with pytest.raises(ValueError, match="found no checkpoint there"):
        inference.main(["--cfg-path", str(trained), "--ckpt", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="expected a checkpoint of epoch 7, found epochs 1"):
        inference.main(["--cfg-path", str(trained), "--options", "inference.test_epoch=7"])
    trained.write_text("inference: {base_root: x}")
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        inference.main(["--cfg-path", str(trained)])


@pytest.fixture
def embedded(tiny_world):
    """The tiny world with features of the encoders that need no weights."""
    section = tiny_world.datasets["toy"]
    section.visual_encoder, section.acoustic_encoder, section.au_encoder = (name for name, _ in EMBEDDED.values())
    tiny_world.model.preextracted_visual_dim = EMBEDDED[Modality.FRAME][1]
    tiny_world.model.preextracted_acoustic_dim = EMBEDDED[Modality.AUDIO][1]
    tiny_world.model.preextracted_au_dim = EMBEDDED[Modality.AU][1]
    store, rng = FeatureStore(Path(section.preextracted_root), "toy"), np.random.default_rng(0)
    for stream in (Modality.FRAME, Modality.FACE, Modality.AUDIO, Modality.AU):
        spec = section.spec(stream, tiny_world.model.feature_dim(stream))
        for i in range(12):
            array = rng.normal(size=(8, spec.dim)).astype(np.float32)
            store.write(spec, f"c{i}", array / np.linalg.norm(array, axis=1, keepdims=True), {})
    return tiny_world


@pytest.fixture
def trained_on_embedded(embedded, tmp_path):
    return train_tiny(embedded, tmp_path)


@pytest.fixture
def trained_in_words(embedded, tmp_path):
    """A checkpoint that was shown action units as text; of the clips to answer c8 has some and c9 none."""
    captions = {"c1": "The brows rise.", "c8": "The lips part.", "c9": ""}
    content = {"TOY": {name: {"caption": text} for name, text in captions.items()}}
    (tmp_path / "captions.json").write_text(json.dumps(content))
    section = embedded.datasets["toy"]
    section.use_nonverbal_text, section.nonverbal_json = True, str(tmp_path / "captions.json")
    return train_tiny(embedded, tmp_path)


def test_every_real_clip_is_answered_with_what_it_has(trained_on_embedded, tmp_path, shared):
    videos = sorted(path for path in (shared / "data/video").iterdir() if path.suffix != ".tsv")
    for video in videos:
        table = shared / "data/openface/featureextraction" / f"{video.stem}.csv"
        arguments = ["--cfg-path", str(trained_on_embedded), "--video", str(video), "--subtitle", "bin blue"]
        inference.main([*arguments, "--openface_csv", str(table), "--attention"])
    drawn = {path.stem for path in (tmp_path / "results" / "clips-attention").glob("*.png")}
    assert drawn == {video.stem for video in videos}
    answers = {answer["name"]: answer for answer in records(tmp_path / "results" / "clips.jsonl")}
    assert len(answers) == 12
    assert answers["pyfeat_no_face"]["missing"][:1] == ["face"]
    assert "au" in answers["pyfeat_no_face"]["missing"]
    assert "frame" in answers["pyfeat_no_face"]["streams"]
    assert answers["grid_bbaf2n"]["missing"] == []
    assert answers["pyfeat_face_noface"]["missing"] == []


def test_features_made_otherwise_than_in_training_are_noticed(trained_on_embedded, tmp_path, shared, caplog):
    arguments = ["--cfg-path", str(trained_on_embedded), "--video", str(shared / "data/video/grid_bbaf2n.mpg")]
    inference.main(arguments)
    assert "that the model was trained on" not in caplog.text
    sidecars = {stream: tmp_path / f"features/toy/{stream}_DCT_8frms/provenance.json" for stream in ("face", "frame")}
    for stream, key in (("face", '"faces_from": "face arrays"'), ("frame", '"frame_geometry": "squash"')):
        sidecars[stream].write_text(sidecars[stream].read_text().replace("{", f"{{{key},", 1))
    inference.main(arguments)
    assert "face: faces_from is 'opencv' here, but 'face arrays' in the features of toy" in caplog.text
    assert "frame_geometry" not in caplog.text  # a clip's frames are squashed as those of the training were
    inference.main([*arguments, "--frame_geometry", "crop"])
    assert "frame: frame_geometry is 'crop' here, but 'squash' in the features of toy" in caplog.text


@pytest.mark.parametrize("key, there, here", [("precision", "bfloat16", "float32"), ("device", "cuda", "cpu")])
def test_another_device_or_precision_than_in_training_is_noticed(tiny_world, caplog, key, there, here):
    section = tiny_world.datasets["toy"]
    store = FeatureStore(Path(section.preextracted_root), "toy")
    (store.root / section.spec(Modality.AUDIO, 1).folder / "provenance.json").write_text(json.dumps({key: there}))
    for found in ({key: there}, {}, None, {key: here}):
        assert not caplog.text
        warn_of_other_features(tiny_world, {Modality.AUDIO: found})
    assert f"audio: {key} is '{here}' here, but '{there}' in the features of toy that the model" in caplog.text


def test_a_table_of_another_clip_is_refused_unless_that_is_wanted(trained_on_embedded, shared, caplog):
    video = shared / "data/video/grid_bbaf2n.mpg"
    table = shared / "data/openface/featureextraction/pyfeat_face_noface.csv"
    arguments = ["--cfg-path", str(trained_on_embedded), "--video", str(video), "--openface_csv", str(table)]
    with pytest.raises(ValueError, match=r"has 75 frames, but its action units were measured on 169 .*_noface\.csv"):
        inference.main(arguments)
    inference.main([*arguments, "--allow_mismatch"])
    assert "75 frames, but its action units were measured on 169" in caplog.text


def test_a_clip_without_a_table_is_answered_from_the_rest(trained_on_embedded, tmp_path, shared, capsys):
    video = shared / "data/video/grid_bbaf2n.mpg"
    for _ in range(2):  # its answer takes the place of the one before
        inference.main(["--cfg-path", str(trained_on_embedded), "--video", str(video)])
    assert capsys.readouterr().out.count(f"1 answer: {tmp_path / 'results' / 'clips.jsonl'}") == 2
    (answer,) = records(tmp_path / "results" / "clips.jsonl")
    assert answer["missing"] == answer["unmeasured"] == ["au"]
    assert answer["action_units"] == {}


def test_action_units_in_words_are_shown_absent_or_not_measured(trained_in_words, tmp_path, capsys):
    weights = load_file(next((tmp_path / "run").glob("*/fusion.safetensors")))
    assert not [name for name in weights if "au" in name.split(".")]  # no part of the model reads them
    inference.main(["--cfg-path", str(trained_in_words)])
    shown, absent, unknown, _ = records(answers_file(tmp_path))
    assert (shown["streams"][-1], shown["nonverbal"], shown["missing"]) == ("au", "The lips part.", [])
    assert (absent["streams"][-1], absent["missing"], absent["unmeasured"]) == ("frame", ["au"], [])
    assert unknown["missing"] == unknown["unmeasured"] == ["au"]
    printed = " ".join(capsys.readouterr().out.split())
    for state in (", action units", "; not in the clip: action units", "; not measured: action units"):
        assert f"shown: pictures and sound together, sound, face, scene{state}" in printed
    options = ["inference.without=[au]", f"inference.base_root={tmp_path / 'less'}"]
    inference.main(["--cfg-path", str(trained_in_words), "--options", *options])
    assert records(next(tmp_path.glob("less-toy/run/*.jsonl")))[0]["withheld"] == ["au"]
    path = tmp_path / "captions.json"
    path.write_text(path.read_text().replace("part", "press together"))
    with pytest.raises(ValueError, match=r"other settings \(captions\); give --overwrite"):
        inference.main(["--cfg-path", str(trained_in_words)])


def test_one_clip_is_told_of_or_measured_and_described(trained_in_words, tmp_path, shared):
    video, clips = shared / "data/video/grid_bbaf2n.mpg", tmp_path / "results" / "clips.jsonl"
    answer_with(trained_in_words, video, "--nonverbal_text", "The chin is raised.")
    assert records(clips)[0]["nonverbal"] == "The chin is raised."
    answer_with(trained_in_words, video)
    assert (records(clips)[0]["nonverbal"], records(clips)[0]["unmeasured"]) == ("", ["au"])
    table = shared / "data/openface/featureextraction/grid_bbaf2n.csv"
    answer_with(trained_in_words, video, "--openface_csv", str(table))
    (answer,) = records(clips)
    assert "lip" in answer["nonverbal"] and answer["missing"] == [] and answer["action_units"]


def test_words_for_a_model_that_reads_none_are_refused(trained, capsys):
    with pytest.raises(ValueError, match="--nonverbal_text: expected a layout with action units as text"):
        answer_with(trained, __file__, "--nonverbal_text", "The chin is raised.")
    with pytest.raises(SystemExit):
        inference.main(["--cfg-path", str(trained), "--nonverbal_text", "x"])
    assert "--nonverbal_text is of one clip: give --video with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["none.mp4"], "none.mp4: no such file"),
        ([__file__, __file__], "found 2 paths; make a table with a column `name`"),
        (["."], "found the folder .; make a table with a column `name`"),
        ([__file__, "--openface_csv", "none.csv"], "none.csv: no such file"),
    ],
)
def test_what_is_no_single_clip_is_told_before_anything_is_loaded(monkeypatch, paths, said):
    monkeypatch.setattr("affect.data.config.load_config", None)
    with pytest.raises(ValueError, match=said):
        inference.main(["--cfg-path", "eval_configs/demo.yaml", "--video", *paths])


def test_a_file_that_is_no_video_is_named(trained_on_embedded, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        inference.main(["--cfg-path", str(trained_on_embedded), "--video", str(bad)])


def answer_with(trained, video, *more):
    return inference.main(["--cfg-path", str(trained), "--video", str(video), *more])


def test_a_clip_is_extracted_with_the_settings_that_extraction_has(trained_on_embedded, tmp_path, shared):
    video, tables = shared / "data/video/grid_bbaf2n.mpg", shared / "data/openface/featureextraction"
    answer_with(trained_on_embedded, video, "--openface_root", str(tables), "--frame_sampling", "emotion_peak")
    answer_with(trained_on_embedded, video, "--openface_root", str(tables), "--face_finder", "opencv")
    answers = records(tmp_path / "results" / "clips.jsonl")
    assert answers[-1]["missing"] == []
    assert answers[-1]["action_units"]
    np.save(tmp_path / "grid_bbaf2n.npy", np.zeros((0, 4, 4, 3), np.uint8))
    answer_with(trained_on_embedded, video, "--face_root", str(tmp_path))
    assert set(records(tmp_path / "results" / "clips.jsonl")[-1]["missing"]) == {"face", "au"}


def test_action_units_come_from_the_backend_that_is_asked_for(trained_on_embedded, tmp_path, shared, monkeypatch):
    table = shared / "data/openface/featureextraction/grid_bbaf2n.csv"
    monkeypatch.setattr("extractors.run.session.mediapipe_version", lambda: "0.10.21")
    monkeypatch.setattr("extractors.au.landmarks.analyse_landmarks", lambda video: analyse_openface(table, video))
    answer_with(trained_on_embedded, shared / "data/video/grid_bbaf2n.mpg", "--au_backend", "mediapipe")
    assert records(tmp_path / "results" / "clips.jsonl")[-1]["action_units"]


def test_flags_of_one_clip_are_refused_without_one(trained, capsys):
    for flag in (["--au_backend", "pyfeat"], ["--frame_sampling", "headtail"], ["--subtitle", "hm"]):
        with pytest.raises(SystemExit):
            inference.main(["--cfg-path", str(trained), *flag])
        assert f"{flag[0]} is of one clip: give --video with it" in capsys.readouterr().err
