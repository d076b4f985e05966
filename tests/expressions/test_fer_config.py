"""Settings of the image track: users' flags keep working, faults are named."""

from pathlib import Path

import pytest

from affect.core.config import ConfigError
from affect.expressions.config import input_spec, load_fer_config


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "fer.yaml"
    path.write_text("task: fer\nmodel: {arch: compact}\nrun: {batch-size: 3, wd: 0.1}\n")
    return path


FLAGS = {
    "data=raf": ("images", "data_root", "raf"),
    "data_csv=fer2013.csv": ("images", "data_root", "fer2013.csv"),
    "data_type=RAF-DB": ("images", "data_type", "RAF-DB"),
    "batch-size=144": ("run", "batch_size_train", 144),
    "lr=3.5e-5": ("run", "init_lr", 3.5e-5),
    "optimizer=sgd": ("run", "optimizer", "sgd"),
    "momentum=0.8": ("run", "momentum", 0.8),
    "wd=1e-4": ("run", "weight_decay", 1e-4),
    "workers=0": ("run", "num_workers", 0),
    "gpu=1": ("run", "device", "cuda:1"),
    "gpu=-1": ("run", "device", "cpu"),
    "resume=output/x": ("run", "resume_ckpt_path", "output/x"),
    "beta=0.1": ("run", "label_smoothing", 0.1),
    "attn_drop=0.4": ("model", "attn_drop", 0.4),
    "proj_drop=0.2": ("model", "proj_drop", 0.2),
    "drop_path=0.5": ("model", "drop_path", 0.5),
    "qk_norm=True": ("model", "qk_norm", True),
    "stage=4": ("model", "stage", "stage4"),
    "depth=6": ("model", "depth", 6),
    "backbone=convnext_tiny": ("model", "backbone", "convnext_tiny"),
    "pretrained=True": ("model", "pretrained", True),
    "img_size=160": ("model", "img_size", 160),
    "grad_checkpointing=True": ("model", "grad_checkpointing", True),
    "val_split=0.2": ("images", "val_split", 0.2),
    "auto_augment=True": ("images", "auto_augment", True),
    "random_erasing=0.25": ("images", "random_erasing", 0.25),
    "mixup=0.2": ("images", "mixup", 0.2),
    "cutmix=1.0": ("images", "cutmix", 1.0),
    "no_amp=True": ("run", "amp", False),
    "out_dir=outputs": ("run", "output_dir", "outputs"),
    "save_dir=checkpoints": ("run", "output_dir", "checkpoints"),
    "loss_type=focal": ("run", "loss_type", "focal"),
    "focal_gamma=1.5": ("run", "focal_gamma", 1.5),
    "label_smoothing=0.12": ("run", "label_smoothing", 0.12),
    "patience=15": ("run", "early_stop", 15),
    "grad_accum_steps=2": ("run", "gradient_accumulation_steps", 2),
    "device_target=GPU": ("run", "device", "cuda"),
    "device_target=CPU": ("run", "device", "cpu"),
    "augment=False": ("images", "augment", False),
}


@pytest.mark.parametrize("option", FLAGS)
def test_every_flag_of_users_scripts_is_an_option_without_its_section(file, option):
    section, key, value = FLAGS[option]
    assert getattr(getattr(load_fer_config(file, [option]), section), key) == value


def test_an_option_counts_before_another_spelling_in_the_file(file):
    run = load_fer_config(file, ["batch_size=5", "run.weight_decay=0.2"]).run
    assert (run.batch_size_train, run.weight_decay) == (5, 0.2)


def test_mixup_is_a_switch_or_an_alpha(file):
    assert load_fer_config(file, ["mixup=True", "mixup_alpha=0.4"]).images.mixup == 0.4
    assert load_fer_config(file, ["mixup=0.7", "mixup_alpha=0.4"]).images.mixup == 0.7
    assert load_fer_config(file, ["mixup=False"]).images.mixup == 0


def test_the_evaluate_flag_says_which_tool_evaluates(file, caplog):
    caplog.set_level("INFO")
    load_fer_config(file, ["evaluate=best.pth"])
    assert "tools/evaluate.py fer" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["lrr=1"], "did you mean lr"),
        (["run.epoch=2"], "did you mean max_epoch"),
        (["val_split=0.6", "test_split=0.5"], "leave nothing to train on"),
        (["erasing_scale=[0.3, 0.1]"], "expected 0 < from <= to"),
        (["mean=[0.5]"], "expected both or none"),
        (["votes_target=soft"], "set votes_csv"),
        (["model.arch=resnet"], "model.arch"),
        (["lr=-1", "epochs=0"], "run.max_epoch"),
        (["no_amp=maybe"], "no_amp: expected True or False"),
        (["batch_size=1"], "compact normalises over the batch"),
    ],
)
def test_a_wrong_setting_is_named_with_its_key(file, options, said):
    with pytest.raises(ConfigError, match=said):
        load_fer_config(file, options)


def test_all_faults_are_told_at_once(file):
    with pytest.raises(ConfigError) as error:
        load_fer_config(file, ["lr=-1", "epochs=0", "depth=x"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("option", ["run.seed=-1", "run.seed=4294967296", "split_seed=-1"])
def test_a_seed_that_no_generator_takes_is_a_fault_with_its_key(file, option):
    with pytest.raises(ConfigError, match=option.partition("=")[0]):
        load_fer_config(file, [option])


def test_a_file_says_its_task_by_either_name(file):
    file.write_text(file.read_text().replace("task: fer", "task: expressions"))
    assert load_fer_config(file).task == "expressions"
    file.write_text(file.read_text().replace("task: expressions", "task: affectgpt"))
    with pytest.raises(ConfigError, match="task: expected expressions, found 'affectgpt'"):
        load_fer_config(file)


def test_weights_are_not_divided(file):
    with pytest.raises(ConfigError, match="fsdp: networks of the image track fit on one card"):
        load_fer_config(file, ["fsdp=True"])


def test_normalisation_follows_the_channels(file):
    gray = load_fer_config(file).model
    assert input_spec(gray, None, None).channels == 1
    with pytest.raises(ConfigError, match="expected 1 numbers"):
        input_spec(gray, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    rgb = load_fer_config(file, ["arch=poster_v2"]).model
    spec = input_spec(rgb, [0.5] * 3, [0.25] * 3)
    assert (spec.size, spec.channels, spec.mean) == (224, 3, (0.5, 0.5, 0.5))


@pytest.mark.parametrize("gpu", ["[0,1]", "first", "1.5"])
def test_a_gpu_that_is_no_index_is_one_sentence(gpu):
    with pytest.raises(ConfigError, match=r"gpu: expected the index of one GPU, or -1 for the CPU, found"):
        load_fer_config(Path(__file__).parents[2] / "train_configs" / "fer_cls_vit.yaml", [f"gpu={gpu}"])
