"""Answers through the script: for a data set and for single real clips."""

import json
from pathlib import Path

import numpy as np
import pytest

import inference
import train
from affect.au_json import au_json_path, write_au_json
from affect.config import ConfigError, save_config
from affect.infer import Answer
from affect.schema import Modality
from affect.store import FeatureStore
from extractors.openface import analyse_openface

EMBEDDED = {Modality.FRAME: ("DCT", 128), Modality.AUDIO: ("PROSODY", 64), Modality.AU: ("HASHED_NGRAMS", 512)}


@pytest.fixture
def trained(tiny_world, tmp_path):
    """A checkpoint of the tiny run and an evaluation file that names it."""
    tiny_world.run.max_epoch = 1
    save_config(tiny_world, tmp_path / "train.yaml")
    train.main(["--cfg-path", str(tmp_path / "train.yaml")])
    return evaluation_file(tmp_path)


def evaluation_file(tmp_path: Path) -> Path:
    path = tmp_path / "eval.yaml"
    places = f"ckpt_root: {tmp_path / 'run'}, base_root: {tmp_path / 'results'}"
    path.write_text(f"inference: {{{places}, max_new_tokens: 5, device: cpu}}")
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    inference.show(inference.Console(), answer)
    assert "a[x]" in (shown := capsys.readouterr().out)
    assert "[/laughs]" in shown


def test_labels_only_asks_the_other_question(trained, tmp_path):
    inference.main(["--cfg-path", str(trained), "--no_reasoning"])
    (file,) = (tmp_path / "results-toy" / "run").glob("*-ovlabel.jsonl")
    assert records(file)[0]["question"].startswith("Which emotions")


def test_streams_can_be_left_out_to_see_what_answers_rest_on(trained, tmp_path):
    inference.main(["--cfg-path", str(trained), "--options", "inference.without=[audio, face]"])
    (file,) = (tmp_path / "results-toy" / "run").glob("*.jsonl")
    assert records(file)[0]["streams"] == ["multi", "frame", "au"]
    assert records(file)[0]["missing"] == ["face", "audio"]


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
def trained_on_embedded(tiny_world, tmp_path):
    """A checkpoint whose features are those of the encoders that need no weights."""
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
    tiny_world.run.max_epoch, tiny_world.run.iters_per_epoch, tiny_world.run.warmup_steps = 1, 1, 0
    save_config(tiny_world, tmp_path / "train.yaml")
    train.main(["--cfg-path", str(tmp_path / "train.yaml")])
    return evaluation_file(tmp_path)


def test_every_real_clip_is_answered_with_what_it_has(trained_on_embedded, tmp_path, shared):
    videos = sorted(path for path in (shared / "data/video").iterdir() if path.suffix != ".tsv")
    for video in videos:
        table = shared / "data/openface/featureextraction" / f"{video.stem}.csv"
        arguments = ["--cfg-path", str(trained_on_embedded), "--video", str(video), "--subtitle", "bin blue"]
        inference.main([*arguments, "--openface_csv", str(table)])
    answers = {answer["name"]: answer for answer in records(tmp_path / "results" / "clips.jsonl")}
    assert len(answers) == 12
    assert answers["pyfeat_no_face"]["missing"][:1] == ["face"]
    assert "au" in answers["pyfeat_no_face"]["missing"]
    assert "frame" in answers["pyfeat_no_face"]["streams"]
    assert answers["grid_bbaf2n"]["missing"] == []
    assert answers["pyfeat_face_noface"]["missing"] == []


def test_a_table_of_another_clip_is_noticed(trained_on_embedded, shared, caplog):
    video = shared / "data/video/grid_bbaf2n.mpg"
    table = shared / "data/openface/featureextraction/pyfeat_face_noface.csv"
    inference.main(["--cfg-path", str(trained_on_embedded), "--video", str(video), "--openface_csv", str(table)])
    assert "75 frames, but its OpenFace table 169" in caplog.text


def test_a_clip_without_a_table_is_answered_from_the_rest(trained_on_embedded, tmp_path, shared):
    video = shared / "data/video/grid_bbaf2n.mpg"
    inference.main(["--cfg-path", str(trained_on_embedded), "--video", str(video)])
    (answer,) = records(tmp_path / "results" / "clips.jsonl")
    assert answer["missing"] == ["au"]
    assert answer["action_units"] == {}


def test_a_file_that_is_no_video_is_named(trained_on_embedded, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        inference.main(["--cfg-path", str(trained_on_embedded), "--video", str(bad)])
