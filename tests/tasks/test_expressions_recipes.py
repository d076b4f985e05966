"""The recipes that ship for images go through the real train.py with a tiny network on miniature data."""

from pathlib import Path

import numpy as np
import pytest

from affect.expressions.config import load_fer_config
from affect.expressions.models import load_model
from affect.expressions.network_file import read_card
from fer_runs import ROOT, history, run, write_pictures

SEVEN = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
POSTER = ("width=0.125", "ir50_weights=null", "face_weights=null")
MINIATURES = {
    "fer_posterv2_rafdb": (tuple("1234567"), POSTER, 7),
    "fer_posterv2_affectnet7": (SEVEN, POSTER, 7),
    "fer_posterv2_8cls": ((*SEVEN, "contempt"), POSTER, 8),
    "fer_posterv2_caers": (("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"), POSTER, 7),
    "fer_cls_vit": (tuple("1234567"), ("width=0.125", "depth=1", "ir50_weights=null"), 7),
    "fer_timm_baseline": (("happy", "sad"), ("pretrained=False", "img_size=32", "backbone=resnet10t"), 2),
    "fer2013_compact_50ep": (None, ("width=0.25",), 7),
}
"""Configuration -> the folders of its data (none: a CSV file), what makes it small, its classes."""
SHORT = ("epochs=1", "batch_size=8", "num_workers=0", "device=cpu")


def write_fer2013(path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        f"{label},{' '.join(map(str, rng.integers(0, 256, 48 * 48)))},{usage}"
        for usage in ("Training", "PublicTest", "PrivateTest")
        for label in range(7)
    ]
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]))
    return path


def test_every_recipe_is_tried():
    assert {path.stem for path in (ROOT / "train_configs").glob("fer*.yaml")} == MINIATURES.keys()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", MINIATURES)
def test_a_recipe_trains_and_its_network_can_be_loaded(name, tmp_path):
    folders, small, classes = MINIATURES[name]
    if folders:
        data = write_pictures(tmp_path / "data", {"train": 1, "val": 1}, folders)
    else:
        data = write_fer2013(tmp_path / "fer2013.csv")
    folder = tmp_path / "run"
    path = ROOT / "train_configs" / f"{name}.yaml"
    assert run(path, f"images.data_root={data}", f"output_dir={folder}", *small, *SHORT) == 0
    model, card = load_model(folder)
    assert len(card.classes) == classes
    assert card.model.arch == load_fer_config(path).model.arch
    assert read_card(folder / "last.safetensors").epoch == 1
    assert history(folder)[0]["val_loss"] > 0
    assert not model.training


@pytest.mark.parametrize(
    ("name", "rate", "batch"),
    [
        ("fer_posterv2_rafdb", 3.5e-5, 144),
        ("fer_posterv2_affectnet7", 1e-6, 144),
        ("fer_posterv2_8cls", 1e-6, 144),
        ("fer_posterv2_caers", 4e-5, 144),
    ],
)
def test_the_recipes_of_poster_v2_are_those_of_the_paper(name, rate, batch):
    config = load_fer_config(ROOT / "train_configs" / f"{name}.yaml")
    run = config.run
    assert (run.init_lr, run.batch_size_train, run.max_epoch, run.optimizer, run.sam, run.sam_rho) == (
        *(rate, batch, 200, "adam", True, 0.05),
    )
    assert (run.scheduler, run.schedule_by, run.gamma, run.label_smoothing) == ("exponential", "epoch", 0.98, 0)
    assert config.images.balanced == ("AffectNet" in config.images.data_type)


FLAGS = {
    "fer_posterv2_rafdb": [
        *("data=/d", "data_type=AffectNet-7", "epochs=3", "batch-size=9", "lr=1e-5", "optimizer=sgd", "momentum=0.8"),
        *("wd=1e-3", "workers=0", "gpu=-1", "resume=/r", "beta=0.6", "rho=0.1", "adaptive=True"),
    ],
    "fer_timm_baseline": [
        *("data_root=/d", "pretrained=True", "backbone=convnext_tiny", "img_size=192", "weight_decay=1e-4"),
        *("val_split=0.1", "test_split=0.0", "no_amp=True", "out_dir=/o", "auto_augment=True", "random_erasing=0.25"),
        *("loss_type=focal", "label_smoothing=0.1", "focal_gamma=2.0", "mixup=0.2", "cutmix=1.0", "patience=0"),
        *("grad_accum_steps=2", "grad_checkpointing=True"),
    ],
    "fer2013_compact_50ep": [
        *("data_csv=/d.csv", "device_target=CPU", "batch_size=32", "epochs=50", "lr=5e-4", "patience=15"),
        *("augment=True", "mixup=True", "mixup_alpha=0.4", "label_smoothing=0.1", "weight_decay=3e-5", "save_dir=/s"),
    ],
    "fer_cls_vit": ["attn_drop=0.4", "proj_drop=0.2", "drop_path=0.5", "qk_norm=True", "depth=2", "stage=4"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_the_flags_that_users_know_are_options_of_the_recipe(name):
    path = ROOT / "train_configs" / f"{name}.yaml"
    assert load_fer_config(path, FLAGS[name]) != load_fer_config(path)


def test_a_recipe_without_its_weights_says_where_they_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", {"train": 1, "val": 1}, tuple("1234567"))
    path = ROOT / "train_configs" / "fer_posterv2_rafdb.yaml"
    with pytest.raises(ValueError, match=r"models/pretrain/ir50\.pth: no such file; put .* there"):
        run(path, "data=data", f"output_dir={tmp_path / 'run'}", *SHORT)
