"""Which checkpoints answer, and what a configuration says of the data sets to answer."""

import dataclasses
import json
from pathlib import Path

import pytest

from affect.answer.setup import answered_datasets, find_checkpoints, trained_config
from affect.data.config import Config, ConfigError, DatasetConfig, InferenceConfig, parse_config, save_config
from affect.engine.checkpoint import TrainState


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints of epochs 3 to 8, whose files of weights are empty."""
    names = {field.name for field in dataclasses.fields(TrainState)}
    for epoch in range(3, 9):
        folder = tmp_path / "run" / f"checkpoint_{epoch:06d}_loss_0.500"
        (folder / "adapter").mkdir(parents=True)
        for weights in ("fusion.safetensors", "adapter/adapter_model.safetensors"):
            (folder / weights).touch()
        state = {"epoch": epoch, "step": epoch, "loss": 0.5, "finished": False}
        (folder / "state.json").write_text(json.dumps({key: value for key, value in state.items() if key in names}))
        save_config(Config(), folder / "config.yaml")
    return tmp_path / "run"


def epochs(root: Path, **inference) -> list[int]:
    return [int(path.name[11:17]) for path in find_checkpoints(root, InferenceConfig(**inference))]


def test_one_checkpoint_answers_or_those_of_some_epochs(run):
    assert epochs(run) == [8]
    assert epochs(run, test_epochs="4-6") == [4, 5, 6]
    assert epochs(run, test_epochs="1-100", skip_epoch=4) == [4, 8]
    assert epochs(run, test_epochs="4-6", test_epoch=7) == [7]
    assert epochs(run / "checkpoint_000003_loss_0.500", test_epochs="4-6") == [3]
    unset = parse_config({"inference": {"test_epochs": "xxx-xxx", "test_epoch": "xxx", "skip_epoch": 1}}, "x").inference
    assert len(find_checkpoints(run, unset)) == 1


@pytest.mark.parametrize("lost", ["fusion.safetensors", "adapter/adapter_model.safetensors", "state.json"])
def test_a_checkpoint_that_is_half_removed_stops_no_others(run, lost, caplog):
    (run / "checkpoint_000005_loss_0.500" / lost).unlink()
    (run / "checkpoint_000006_loss_0.500" / "state.json").write_text('{"epo')
    assert epochs(run, test_epochs="4-6") == [4, 6]
    assert epochs(run, test_epoch=4) == [4]
    assert ("checkpoint_000005_loss_0.500: left out" in caplog.text) == lost.endswith("safetensors")


def test_epochs_that_are_none_or_not_there_are_named(run):
    with pytest.raises(ConfigError, match=r"expected first-last, e\.g\. 10-30, found '4,5'"):
        epochs(run, test_epochs="4,5")
    with pytest.raises(ValueError, match="epochs 5-7 that 10 divides, found epochs 3, 4, 5, 6, 7, 8"):
        epochs(run, test_epochs="5-7", skip_epoch=10)


def test_what_decides_the_network_must_be_the_checkpoints(run):
    (checkpoint,) = find_checkpoints(run, InferenceConfig())
    asked = parse_config(
        {"model": {"skip_encoders": False, "use_au_agent": True, "frozen_llm": True, "llama_model": "elsewhere"}}, "x"
    )
    config = trained_config(asked, checkpoint, "x.yaml")
    assert (config.model.skip_encoders, config.model.llama_model, config.model.frozen_llm) == (
        False,
        "elsewhere",
        False,
    )
    asked.model.num_au_query_token = 3
    with pytest.raises(ConfigError, match=r"x\.yaml: model\.num_au_query_token: the checkpoint .* has 1, found 3"):
        trained_config(asked, checkpoint, "x.yaml")


@pytest.fixture
def trained() -> Config:
    section = DatasetConfig(
        face_or_frame="audio_text",
        preextracted_root="features/mercaptionplus",
        acoustic_encoder="WAVLM_LARGE",
        csv_path="own.csv",
        video_root="raw",
        mer_factory_output="au",
    )
    return Config(datasets={"mercaptionplus": section})


def test_a_file_without_data_sets_answers_those_of_the_checkpoint(trained):
    asked = parse_config({"inference": {"acoustic_encoder": "HUBERT_LARGE", "face_or_frame": "xxx"}}, "x")
    (section,) = answered_datasets(asked, trained).values()
    assert section == trained.datasets["mercaptionplus"].model_copy(update={"acoustic_encoder": "HUBERT_LARGE"})


def test_what_a_section_does_not_say_the_checkpoint_says(trained):
    asked = parse_config({"datasets": {"mercaptionplus": {"csv_path": "test.csv"}, "own": {"csv_path": "b.csv"}}}, "x")
    sections = answered_datasets(asked, trained)
    assert list(sections) == ["mercaptionplus", "own"]
    assert (sections["mercaptionplus"].csv_path, sections["mercaptionplus"].video_root) == ("test.csv", "raw")
    assert (sections["own"].csv_path, sections["own"].video_root) == ("b.csv", None)
    assert sections["own"].acoustic_encoder == "WAVLM_LARGE"


def test_a_known_data_set_needs_no_section(trained):
    (section,) = answered_datasets(Config(), trained, "mer2023").values()
    assert (section.face_or_frame, section.acoustic_encoder) == ("audio_text", "WAVLM_LARGE")
    assert (section.csv_path, section.video_root, section.mer_factory_output) == (None, None, "au")
    assert section.preextracted_root == "features"  # beside that of the trained data set, not below it
    with pytest.raises(ValueError, match="--dataset nope: expected one of mercaptionplus, or a known data set"):
        answered_datasets(Config(), trained, "nope")


def test_data_sets_to_evaluate_count_before_those_of_training(trained):
    content = {
        "datasets": {"other": {}, "own": {"csv_path": "a.csv", "video_root": "raw", "audio_root": "noise"}},
        "evaluation_datasets_cfg": {"own": {"eval_file_path": "b/label.npz", "audio_root": "sound"}},
    }
    ((name, section),) = answered_datasets(parse_config(content, "x"), trained).items()
    assert (name, section.ann_paths, section.csv_path) == ("own", ["b/label.npz"], "a.csv")
    assert (section.video_root, section.audio_root, section.acoustic_encoder) == ("raw", "sound", "WAVLM_LARGE")
