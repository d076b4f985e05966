import logging

import pytest
import yaml

from affect.core.schema import Modality
from affect.data.config import ConfigError, DatasetConfig, ModelConfig, load_config, parse_config, save_config


def test_every_fault_is_reported_at_once_with_file_and_key(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "model: {lora_rr: 3, lora_alpha: many}\nrunn: {}\ndatasets: {a: {face_or_frame: mult, frame_samplin: 3}}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert all(line.startswith(str(path)) for line in lines)
    assert f"{path}: model.lora_rr: unknown key; did you mean lora_r?" in lines
    assert any("datasets.a.face_or_frame: expected one of textonly" in line for line in lines)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"min_lr": 1, "init_lr": 0.1}, "min_lr 1.0 is above init_lr 0.1"),
        ({"warmup_steps": 9, "max_epoch": 2, "iters_per_epoch": 4}, "warmup_steps 9 is more than the run's 8 steps"),
        ({"batch_size_train": 0}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"run": run}, "x.yaml")


@pytest.mark.parametrize("key", ["lora_r", "qformer_layers", "qformer_hidden_size", "num_multi_query_token"])
def test_a_network_that_no_machine_holds_is_refused_with_its_key(key):
    with pytest.raises(ConfigError, match=f"x.yaml: model.{key}: input should be less than or equal to"):
        parse_config({"model": {key: 10**8}}, "x.yaml")


def test_options_override_the_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("run_cfg: {max_epoch: 5, init_lr: 1e-5}\n")
    config = load_config(path, ["run_cfg.max_epoch=2", "run.seed=7", "model.lora_r=3"])
    assert (config.run.max_epoch, config.run.seed, config.model.lora_r) == (2, 7, 3)
    assert config.run.init_lr == 1e-5
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(path, ["run.max_epoch"])


def test_one_section_under_both_its_names_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("run: {seed: 3}\nrun_cfg: {seed: 4}\n")
    with pytest.raises(ConfigError, match="found both run and run_cfg"):
        load_config(path)


def test_a_saved_configuration_reads_back_the_same(tmp_path):
    config = parse_config({"run": {"seed": 3}, "datasets": {"a": {"frame_sampling": "emotion_peak"}}}, "x")
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize("option", ["datasets=foo", "run.seed=[1", "model=3"])
def test_odd_options_are_refused_without_a_traceback(tmp_path, option):
    path = tmp_path / "x.yaml"
    path.write_text("{}")
    with pytest.raises(ConfigError):
        load_config(path, [option])
    with pytest.raises(ConfigError, match="expected a YAML configuration"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "just text"])
def test_a_file_that_is_no_configuration_says_so(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="expected"):
        load_config(path)


def test_users_files_load_with_the_meaning_they_have_there(shared, caplog):
    caplog.set_level(logging.INFO)
    folder = shared / "goldens/user_configs"
    config = load_config(folder / "recommended_train_with_preextracted_au.yaml")
    assert (config.run.max_epoch, config.run.warmup_steps, config.run.amp) == (60, 5000, True)
    assert (config.model.skip_encoders, config.model.use_au_agent) == (True, True)
    assert config.model.au_agent_device == "cuda:1"
    section = config.datasets["mercaptionplus"]
    assert section.face_or_frame == "multiface_audio_face_frame_au_text"
    assert section.use_preextracted_features is False
    assert config.inference.ckpt_root is None  # 'xxx' in the file
    assert (config.inference.test_epochs, config.inference.skip_epoch, config.inference.gpu) == (None, 1, 0)
    assert any("model.vis_processor is not needed: pictures" in message for message in caplog.messages)

    peak = load_config(folder / "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz.yaml")
    section = peak.datasets["mercaptionplus"]
    assert (section.frame_n_frms, section.frame_sampling) == (1, "emotion_peak")
    assert (peak.model.skip_encoders, peak.model.image_fusion_type) == (False, "mean")

    live = load_config(folder / "inference_frame_preextracted_au_realtime.yaml").inference
    assert (live.use_preextracted_au, live.use_preextracted_features) == (False, True)
    assert live.mer_factory_output == "/home/project/MER-Factory/output"


def test_inference_keys_override_the_data_sets(tmp_path):
    config = parse_config(
        {"datasets": {"a": {"frame_n_frms": 8}}, "inference": {"frame_n_frms": 4, "face_or_frame": "xxx"}}, "x"
    )
    section = config.inference.override(config.datasets["a"])
    assert section.frame_n_frms == 4
    assert section.face_or_frame == config.datasets["a"].face_or_frame
    assert section.spec(Modality.FRAME, 768).folder == "frame_CLIP_VIT_LARGE_4frms"


def test_users_files_of_the_text_mode_and_of_evaluation_load(shared):
    folder = shared / "goldens/user_configs"
    config = load_config(folder / "nonverbal_face_frame_au.yaml")
    training = config.datasets["mercaptionplus"]
    assert (training.captioned, training.nonverbal_json.rpartition("/")[2]) == (True, "MER_UniBench_grained.json")
    assert training.layout.needed == (Modality.FACE, Modality.AUDIO, Modality.FRAME)  # no encoder reads the AUs
    assert training.live(config.model.skip_encoders) == []
    answering = config.inference.override(training)
    assert answering.live(config.model.skip_encoders) == [Modality.FACE, Modality.AUDIO, Modality.FRAME]

    config = load_config(folder / "eval_mer2023_frame_preextract.yaml")
    section = config.datasets["mer2023"]
    assert section.face_or_frame == config.inference.face_or_frame == "multiface_audio_face_frame_au_text"
    assert section.live(config.model.skip_encoders) == [Modality.AU]
    (labels,) = section.ann_paths
    assert labels.endswith("mer2023-dataset-process/label-6way.npz")
    assert config.evaluation_datasets_cfg["mer2023"].ann_paths == [labels]


STORED = {f"use_preextracted_{stream}": True for stream in ("frame", "face", "audio")}


@pytest.mark.parametrize(
    ("before", "said", "live"),
    [
        ({}, {}, ""),
        ({}, {"use_preextracted_au": False}, "au"),
        ({}, {"use_au_clip_realtime": True}, "au"),
        ({"use_preextracted_au": False}, {"use_au_clip_realtime": False}, ""),
        ({}, {"use_preextracted_features": False}, "face audio frame"),
        (STORED, {"use_preextracted_features": False}, "face audio frame"),
        (STORED, {"use_preextracted_features": False, "use_preextracted_audio": True}, "face frame"),
        (STORED, {"use_preextracted_face": False, "use_preextracted_frame": True}, "face"),
        ({"use_preextracted_audio": False}, {"frame_n_frms": 4}, "audio"),
        (STORED, {"use_preextracted_face": False}, "face frame"),  # as such files mean it, see the next line
        (STORED, {"use_preextracted_face": False, "frame_sampling": "emotion_peak"}, "face"),
        ({"frame_sampling": "emotion_peak"}, {"use_preextracted_audio": False}, "audio"),
    ],
)
def test_inference_says_anew_which_streams_are_stored(before, said, live):
    config = parse_config({"datasets": {"a": before}, "inference": said}, "x")
    assert config.inference.override(config.datasets["a"]).live(skip_encoders=False) == live.split()


def test_what_single_streams_and_layouts_say_counts_before_settings_for_all():
    switches = {"use_preextracted_features": False, "use_preextracted_face": False, "use_preextracted_audio": True}
    section = DatasetConfig(**switches)
    assert section.live(skip_encoders=False) == ["face", "frame"] and section.live(skip_encoders=True) == ["face"]
    assert section.live(ModelConfig().skip_encoders) == ["face", "frame"]  # which wins only where a file sets it
    assert not section.over({"use_nonverbal_text": True, "face_or_frame": "audio_text"}).captioned


def test_two_spellings_of_one_switch_must_agree():
    section = {"use_au_clip_realtime": True, "use_preextracted_au": False}
    assert parse_config({"datasets": {"a": section}}, "x").datasets["a"].use_preextracted_au is False
    with pytest.raises(ConfigError, match=r"found both datasets\.a\.use_au_clip_realtime and datasets\.a\.use_pre"):
        parse_config({"datasets": {"a": {**section, "use_preextracted_au": True}}}, "x")
    with pytest.raises(ConfigError, match=r"x: inference\.use_au_clip_realtime: expected True or False, found 'often'"):
        parse_config({"inference": {"use_au_clip_realtime": "often"}}, "x")


def test_every_shipped_configuration_loads():
    from pathlib import Path

    root = Path(__file__).parents[2]
    files = [*root.glob("train_configs/*.yaml"), *root.glob("eval_configs/*.yaml")]
    assert files
    for file in files:
        content = yaml.safe_load(file.read_text())
        if "model_name_or_path" not in content and "task" not in content:  # others have keys of their own
            load_config(file)
