"""Training on images through train.py: what is written, which network is kept, what is left out and said."""

import gc
import logging
import math
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import affect.engine.launch
import affect.engine.loop
import affect.engine.trainer
import affect.expressions.image_set
import affect.tasks.expressions
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.engine.trainer import AVERAGED, start_trainer
from affect.expressions.config import load_fer_config
from affect.expressions.evaluation import evaluate, joined
from affect.expressions.image_set import open_images
from affect.expressions.models import build_model, load_model
from affect.expressions.network_file import read_card
from affect.expressions.presets import data_spec
from affect.tasks.expressions import open_task
from fer_runs import CLASSES, ROOT, history, losses, run, state, write_config, write_pictures
from remembering_tracker import Remembering


def test_a_run_leaves_networks_history_pictures_and_its_configuration(tmp_path):
    path = write_config(tmp_path / "toy.yaml")
    assert run(path) == 0
    folder = tmp_path / "toy"
    expected = "best.safetensors last.safetensors history.json confusion.png accuracy.png failures.csv config.yaml"
    found = {entry.name for entry in folder.iterdir() if not entry.name.startswith(("checkpoint", "."))}
    assert found == {*expected.split(), "metrics.jsonl", "training_curves"}
    assert (folder / "training_curves" / "training_curves_epoch3.png").is_file()
    kept = {read_state(checkpoint).epoch for checkpoint in list_checkpoints(folder)}
    assert kept == {3, read_card(folder).epoch}  # the last and the best
    assert load_fer_config(folder / "config.yaml") == load_fer_config(path)
    entries = history(folder)
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert [entry["step"] for entry in entries] == [3, 6, 9]  # 15 images, batches of 6: the last one is not dropped
    assert entries[0].keys() >= {"lr", "train_loss", "train_acc", "val_loss", "val_acc", "val_macro_f1", "val_uar"}
    assert (folder / "failures.csv").read_text().splitlines() == ["name,stage,reason"]


def test_no_worker_outlives_a_run(tmp_path):
    """One that did would keep the process from ending: workers ignore the signal that Python sends them then."""
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 1, "num_workers": 1})
    gc.disable()  # the run must not be waiting for it
    try:
        assert run(path) == 0
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_pictures")
def test_plateau_goes_on_after_a_validation_loss_that_is_no_number(tmp_path, monkeypatch):
    original, count = affect.tasks.expressions.expression_scores, iter(range(9))

    def scores(*arguments):
        found = original(*arguments)
        return replace(found, means=found.means | {"loss": math.nan}) if next(count) == 1 else found

    monkeypatch.setattr(affect.tasks.expressions, "expression_scores", scores)
    path = write_config(tmp_path / "toy.yaml", run={"scheduler": "plateau", "plateau_patience": 0, "epochs": 3})
    assert run(path) == 0
    assert [entry["val_loss"] is None for entry in history(tmp_path / "toy")] == [False, True, False]
    assert [entry["lr"] for entry in history(tmp_path / "toy")] == [0.01, 0.01, 0.005]


@pytest.mark.usefixtures("no_pictures")
def test_the_files_hold_the_network_whose_scores_they_state(tmp_path):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 6, "ema": 0.8, "lr": 0.03})
    run(path)
    config, entries = load_fer_config(path), history(tmp_path / "toy")
    sets = open_images(config.images, data_spec(config.model, config.images))
    best = max(entries, key=lambda entry: entry["val_acc"])
    for name, entry in (("best", best), ("last", entries[-1])):
        model, card = load_model(tmp_path / "toy" / f"{name}.safetensors")
        assert (card.epoch, card.classes, card.input.size, card.data) == (entry["epoch"], CLASSES, 24, "pictures")
        assert {f"val_{key}": value for key, value in card.scores.items()}.items() <= entry.items()
        evaluation = evaluate(model, sets["val"], 4, "cpu")
        assert evaluation.loss == pytest.approx(entry["val_loss"], abs=1e-5)
        assert (evaluation.probabilities.argmax(1) == evaluation.labels).mean() == pytest.approx(entry["val_acc"])


@pytest.mark.usefixtures("no_pictures")
def test_a_network_learns_what_the_pictures_show(tmp_path):
    path = write_config(
        tmp_path / "toy.yaml",
        images={"crop": 0.0, "mixup": 0.0, "random_erasing": 0.0, "augment": False},
        run={"epochs": 12, "sam": True},
    )
    run(path)
    assert history(tmp_path / "toy")[-1]["train_acc"] > 0.9
    assert max(entry["val_acc"] for entry in history(tmp_path / "toy")) > 0.7


@pytest.mark.usefixtures("no_pictures")
def test_training_ends_when_accuracy_no_longer_rises(tmp_path, caplog):
    path = write_config(tmp_path / "toy.yaml", run={"epochs": 30, "patience": 2, "lr": 1e-9})
    with caplog.at_level(logging.INFO):
        assert run(path) == 0
    assert len(history(tmp_path / "toy")) == 3
    assert "training ends: no better validation accuracy than that of epoch 1 in 2 epochs" in caplog.messages
    assert run(path) == 0
    assert len(history(tmp_path / "toy")) == 3  # it is over, though not all epochs were run


@pytest.mark.usefixtures("no_pictures")
def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    original, accuracies = affect.tasks.expressions.expression_scores, iter([math.nan, 0.5, math.nan, 0.6, 0.6, 0.6, 0])

    def scores(*arguments):
        found = original(*arguments)
        return replace(found, means=found.means | {"acc": next(accuracies)})

    monkeypatch.setattr(affect.tasks.expressions, "expression_scores", scores)
    assert run(write_config(tmp_path / "toy.yaml", run={"epochs": 9, "patience": 2})) == 0
    assert [entry["val_acc"] for entry in history(tmp_path / "toy")] == [None, 0.5, None, 0.6, 0.6, 0.6]
    assert read_card(tmp_path / "toy").epoch == 4


@pytest.mark.usefixtures("no_pictures")
def test_images_that_cannot_be_read_are_listed_and_left_out(tmp_path, caplog):
    write_pictures(tmp_path / "pictures", {"train": 5, "val": 3})
    (tmp_path / "pictures/train/anger/2.png").write_bytes(b"no picture")
    (tmp_path / "pictures/val/neutral/0.png").write_bytes((tmp_path / "pictures/val/neutral/0.png").read_bytes()[:300])
    path = write_config(tmp_path / "toy.yaml")
    with caplog.at_level(logging.INFO):
        assert run(path) == 0
    table = (tmp_path / "toy" / "failures.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table[1:]] == [
        ["train/anger/2.png", "decode"],
        ["val/neutral/0.png", "decode"],
    ]
    assert "train: 14 images of pictures (anger 4, happiness 5, neutral 5)" in caplog.messages


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("workers", [0, 1])
def test_without_the_check_an_unreadable_image_ends_training_in_one_sentence(tmp_path, workers):
    write_pictures(tmp_path / "pictures", {"train": 5, "val": 3})
    (tmp_path / "pictures/train/anger/2.png").write_bytes(b"no picture")
    path = write_config(tmp_path / "toy.yaml", images={"check_images": False}, run={"num_workers": workers})
    with pytest.raises(ValueError, match=r"anger/2\.png: .*; set images\.check_images to True") as error:
        run(path)
    assert "\n" not in str(error.value)


def test_validation_sees_every_image_once_and_tells_what_it_could_not_read(tmp_path):
    write_pictures(tmp_path / "pictures", {"train": 1, "val": 5})
    (tmp_path / "pictures/val/happiness/1.png").write_bytes(b"")
    config = load_fer_config(write_config(tmp_path / "toy.yaml"))
    val_set = open_images(config.images, data_spec(config.model, config.images))["val"]
    torch.manual_seed(0)
    model = build_model(config.model, 3)
    whole = evaluate(model, val_set, 4, "cpu")
    assert whole.names == [name for name in val_set.names if name != "val/happiness/1.png"]
    assert [(failure.name, failure.stage) for failure in whole.failures] == [("val/happiness/1.png", "decode")]
    assert whole.probabilities.dtype == np.float32
    np.testing.assert_allclose(whole.probabilities.sum(axis=1), 1, atol=1e-6)
    alone = np.concatenate([evaluate(model, val_set, 1, "cpu").probabilities])
    np.testing.assert_allclose(whole.probabilities, alone, atol=1e-5)
    expected = -np.log(whole.probabilities[np.arange(14), whole.labels]).mean()
    assert whole.loss == pytest.approx(expected, rel=1e-6)
    parts = [evaluate(model, val_set.take(places), 4, "cpu") for places in (range(7), range(7, 15), [])]
    again = joined(parts)
    assert (again.names, again.failures) == (whole.names, whole.failures)
    assert again.loss == pytest.approx(whole.loss, rel=1e-5)


def test_the_mean_with_the_mirror_image_does_not_depend_on_the_side(tmp_path):
    write_pictures(tmp_path / "pictures", {"train": 1, "val": 2})
    for path in (tmp_path / "pictures/val").rglob("1.png"):
        Image.open(path.with_name("0.png")).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    config = load_fer_config(write_config(tmp_path / "toy.yaml"))
    val_set = open_images(config.images, data_spec(config.model, config.images))["val"]
    found = evaluate(build_model(config.model, 3), val_set, 4, "cpu", flip=True).probabilities
    np.testing.assert_allclose(found[0::2], found[1::2], atol=1e-5)


@pytest.mark.usefixtures("no_pictures")
def test_several_true_classes_are_trained_and_judged_each_on_its_own(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ["emotion,pixels,Usage"]
    votes = ["Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"]
    for number, usage in enumerate(["Training"] * 12 + ["PublicTest"] * 6):
        rows.append(f"3,{' '.join(map(str, rng.integers(0, 256, 48 * 48)))},{usage}")
        counts = [5, 5] if number % 2 else [0, 10]
        votes.append(f"{usage},fer{number:07d}.png,{counts[0]},{counts[1]},0,0,0,0,0,0,0,0")
    (tmp_path / "fer2013.csv").write_text("\n".join(rows))
    (tmp_path / "votes.csv").write_text("\n".join(votes))
    images = {
        "data_root": str(tmp_path / "fer2013.csv"),
        "votes_csv": str(tmp_path / "votes.csv"),
        "votes_target": "multi_label",
        "data_type": "FERPlus",
    }
    run(write_config(tmp_path / "toy.yaml", images=images, run={"epochs": 2, "label_smoothing": 0.1}))
    card = read_card(tmp_path / "toy")
    assert card.multi_label
    best = max(history(tmp_path / "toy"), key=lambda entry: entry["val_macro_f1"])
    assert card.epoch == best["epoch"]


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_names_the_images_and_keeps_the_last_state(tmp_path, monkeypatch):
    path = write_config(tmp_path / "toy.yaml", images={"mixup": 0.0})
    step, count, names = affect.engine.trainer.training_step, iter(range(100)), []

    def poisoned(task, model, optimizer, window, *rest):
        if next(count) == 4:
            names.extend(window[0].names)
            window[0].images[1] = float("nan")
        return step(task, model, optimizer, window, *rest)

    monkeypatch.setattr(affect.engine.trainer, "training_step", poisoned)
    with pytest.raises(FloatingPointError) as error:
        run(path)
    assert str(error.value).startswith(f"step 4: the loss is nan on images {', '.join(names)}; ")
    assert state(tmp_path / "toy").step == 3


@pytest.mark.usefixtures("no_pictures")
def test_faces_are_straightened_where_the_configuration_asks_for_it(tmp_path, monkeypatch):
    seen = []

    def straighten(picture):
        seen.append(picture.shape)
        return None if len(seen) == 3 else picture[:12, :12]

    monkeypatch.setattr(affect.expressions.image_set, "face_straightener", lambda: straighten)
    run(write_config(tmp_path / "toy.yaml", images={"align": True}, run={"epochs": 1}))
    assert seen[0] == (24, 24, 3)
    assert read_card(tmp_path / "toy").aligned
    assert ",align," in (tmp_path / "toy" / "failures.csv").read_text()


def test_every_setting_of_the_optimizer_has_the_flag_that_users_know():
    path = ROOT / "train_configs" / "fer_timm_baseline.yaml"
    options = ["optimizer=sgd", "wd=0.3", "momentum=0.7", "beta1=0.8", "beta2=0.9", "eps=1e-6", "lr=0.5", "rho=0.2"]
    settings = load_fer_config(path, [*options, "adaptive=True", "sam=True"]).run
    assert (settings.optimizer, settings.weight_decay, settings.momentum, settings.init_lr) == ("sgd", 0.3, 0.7, 0.5)
    assert (settings.adam_beta1, settings.adam_beta2, settings.adam_eps) == (0.8, 0.9, 1e-6)
    assert (settings.sam, settings.sam_rho, settings.sam_adaptive) == (True, 0.2, True)


def test_a_trainer_runs_any_number_of_steps_at_any_rate(tmp_path):
    """What a search for the learning rate needs."""
    config = load_fer_config(
        write_config(tmp_path / "toy.yaml", images={"balanced": True}, run={"grad_accum_steps": 2})
    )
    accelerator = Accelerator(cpu=True)
    rates = np.geomspace(1e-4, 1e-1, 5)

    def trained():
        task = open_task(config, accelerator, tmp_path)
        assert task.steps(1)[0] == 2
        trainer = start_trainer(task, accelerator, last=5)
        return [trainer.next_step(rate).loss for rate in rates], trainer.optimizer.param_groups[0]["lr"]

    losses, rate = trained()
    assert np.isfinite(losses).all()
    assert rate == pytest.approx(0.1)
    assert trained() == (losses, rate)


@pytest.mark.usefixtures("no_pictures")
def test_compiling_is_asked_for_and_leaves_the_names_of_the_weights(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: asked.append(type(self).__name__))
    run(write_config(tmp_path / "toy.yaml", model={"compile": True}, run={"epochs": 1, "ema": 0.9}))
    assert asked == ["Compact"]
    load_model(tmp_path / "toy")


def test_data_without_anything_to_validate_on_is_one_sentence(tmp_path):
    write_pictures(tmp_path / "flat", {"": 2})
    path = write_config(tmp_path / "toy.yaml", images={"data_root": str(tmp_path / "flat"), "val_split": 0.0})
    with pytest.raises(ValueError, match=r"expected images to validate on; set images\.val_split above 0, found none"):
        run(path)


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"weights": "nowhere.pth"}, "no such file"), ({"backbone": "resnet50"}, "compact has nothing")],
)
def test_a_network_that_cannot_be_built_ends_the_run_before_images_are_read(tmp_path, monkeypatch, setting, said):
    monkeypatch.setattr(affect.tasks.expressions, "open_images", lambda *_, **__: pytest.fail("images were opened"))
    with pytest.raises(ValueError, match=said):
        run(write_config(tmp_path / "toy.yaml", model=setting))


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(affect.engine.launch, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"run\.trackers: wandb is not installed"):
        run(write_config(tmp_path / "toy.yaml", run={"trackers": ["wandb"]}))


@pytest.mark.usefixtures("no_pictures")
def test_trackers_get_the_configuration_the_steps_and_the_epochs(tmp_path, monkeypatch):
    tracker = Remembering()
    monkeypatch.setattr(affect.engine.launch, "filter_trackers", lambda names, folder: [tracker])
    monkeypatch.setattr(affect.engine.launch, "find_spec", lambda name: name)
    run(write_config(tmp_path / "toy.yaml", run={"trackers": ["tensorboard"]}))
    assert (tracker.config["model.arch"], tracker.config["run.init_lr"], tracker.finished) == ("compact", 0.01, True)
    assert [values["loss"] for _, values in tracker.logged if "loss" in values] == losses(tmp_path / "toy")
    assert [step for step, values in tracker.logged if "val_acc" in values] == [3, 6, 9]


@pytest.fixture
def half_precision(monkeypatch):
    """Let runs use bfloat16, which a processor can do, too."""
    monkeypatch.setattr(
        affect.engine.loop, "start_accelerator", lambda settings: Accelerator(cpu=True, mixed_precision="bf16")
    )
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("no_pictures", "half_precision")
def test_mixed_precision_keeps_weights_losses_and_probabilities_in_full(tmp_path, monkeypatch):
    seen = []

    def halves(module, given, out):
        seen.append(out.dtype)

    original = affect.tasks.expressions.build_model

    def build(*arguments):
        model = original(*arguments)
        next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)).register_forward_hook(halves)
        return model

    monkeypatch.setattr(affect.tasks.expressions, "build_model", build)
    run(write_config(tmp_path / "toy.yaml", run={"ema": 0.5, "sam": True}))
    assert set(seen) == {torch.bfloat16}  # in training and in validation
    assert history(tmp_path / "toy")[-1]["val_loss"] > 0
    checkpoint = find_checkpoint(tmp_path / "toy")
    assert {value.dtype for value in load_file(checkpoint / AVERAGED).values()} == {torch.float32}
    network = load_file(checkpoint / "network.safetensors")
    assert {value.dtype for value in network.values()} == {torch.float32, torch.int64}
