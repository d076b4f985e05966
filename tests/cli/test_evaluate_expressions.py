"""The scoring tool on a network of the image track: splits, classes, broken images, pictures."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from affect.cli import evaluate
from affect.expressions.config import ImageModelConfig, ImagesConfig, input_spec
from affect.expressions.image_set import open_images
from affect.expressions.models import build_model, load_model
from affect.expressions.network_file import ModelCard, save_model

CLASSES = ("angry", "happy", "sad")


def save_random(path, classes=CLASSES, **card):
    """Save a small untrained network and return its path."""
    torch.manual_seed(0)
    config = ImageModelConfig(arch="compact", width=0.25)
    weights = build_model(config, len(classes)).state_dict()
    save_model(path, weights, ModelCard(config, tuple(classes), input_spec(config, None, None), **card))
    return path


@pytest.fixture
def ckpt(tmp_path):
    return save_random(tmp_path / "run" / "best.safetensors")


def save_images(folder, count, seed=0):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.random.default_rng([seed, i]).integers(0, 255, (40, 40), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def data(tmp_path):
    """Folders with train and test: 11 images of each class to train on, 5, 4 and 4 to test on."""
    for seed, name in enumerate(CLASSES):
        save_images(tmp_path / "data" / "train" / name, 11, seed)
        save_images(tmp_path / "data" / "test" / name, 5 if name == "happy" else 4, seed + 10)
    return tmp_path / "data"


def run(capsys, *arguments):
    """Run the tool; return its code, its JSON and what it printed beside it."""
    code = evaluate.main(["fer", "--num_workers", "0", "--device", "cpu", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_every_image_of_the_test_split_is_scored_whatever_the_batch(capsys, ckpt, data):
    code, found, err = run(capsys, "--ckpt", ckpt, "--data_root", data, "--batch-size", 4)
    assert (code, found["split"], found["n"], found["failures"]) == (0, "test", 13, 0)
    assert "test: 13 images" in err and "defaults, for there is no" in err
    assert [row["n"] for row in found["per_label"]] == [4, 5, 4]
    _, whole, _ = run(capsys, "--ckpt", ckpt.parent, "--data_root", data, "--batch-size", 64)
    assert whole["acc"] == found["acc"] and whole["loss"] == pytest.approx(found["loss"], abs=1e-5)


def test_the_loss_and_the_confusion_are_those_of_the_network(capsys, ckpt, data):
    _, found, _ = run(capsys, "--ckpt", ckpt, "--data_root", data)
    model, card = load_model(ckpt)
    part = open_images(ImagesConfig(data_root=str(data)), card.input, ("test",))["test"]
    with torch.no_grad():
        logits = model(torch.stack([part[i].image for i in range(len(part))]))
    labels = torch.as_tensor(part.labels)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    counts = np.zeros((3, 4), int)
    np.add.at(counts, (labels.numpy(), logits.argmax(1).numpy()), 1)
    assert found["confusion"] == counts.tolist()


def test_the_split_is_cut_as_the_run_cut_it(capsys, ckpt, data, monkeypatch):
    import affect.expressions.evaluation

    scored = []
    original = affect.expressions.evaluation.evaluate
    monkeypatch.setattr(
        affect.expressions.evaluation,
        "evaluate",
        lambda model, part, *a, **b: scored.append(part.names) or original(model, part, *a, **b),
    )
    (ckpt.parent / "config.yaml").write_text(
        f"task: fer\nimages: {{data_root: {data}, val_split: 0.3, split_seed: 7}}\n", encoding="utf-8"
    )
    section = ImagesConfig(data_root=str(data), val_split=0.3, split_seed=7)
    expected = open_images(section, load_model(ckpt)[1].input, ("val",))["val"].names
    _, found, err = run(capsys, "--ckpt", ckpt, "--split", "val")  # data and cut are the run's own
    assert scored[-1] == expected and found["n"] == len(expected) == 9 and "config.yaml" in err
    run(capsys, "--ckpt", ckpt, "--split", "val", "--split_seed", 8)
    assert scored[-1] != expected
    _, found, err = run(capsys, "--ckpt", ckpt, "--split", "val", "--val_split", 0.2)
    assert found["n"] == 6 and "val_split as typed" in err


def test_without_a_test_split_the_validation_split_is_scored(capsys, ckpt, data):
    shutil.rmtree(data / "test")
    code, found, _ = run(capsys, "--ckpt", ckpt, "--data_root", data)
    assert (code, found["split"], found["n"]) == (0, "val", 3)
    code, _, err = run(capsys, "--ckpt", ckpt, "--data_root", data, "--split", "test")
    assert code == 2 and "has no test images" in err


def test_unreadable_images_are_listed_and_the_rest_is_scored(capsys, ckpt, data, tmp_path):
    (data / "test" / "sad" / "0.png").write_bytes(b"no picture")
    whole = (data / "test" / "sad" / "1.png").read_bytes()
    (data / "test" / "sad" / "1.png").write_bytes(whole[: len(whole) // 2])
    code, found, err = run(capsys, "--ckpt", ckpt, "--data_root", data, "--pictures", tmp_path / "pictures")
    assert (code, found["n"], found["failures"]) == (1, 11, 2)
    rows = list(csv.DictReader((tmp_path / "pictures" / "failures.csv").open(encoding="utf-8")))
    assert [row["name"] for row in rows] == ["test/sad/0.png", "test/sad/1.png"] and "failures.csv" in err
    (data / "test" / "sad" / "0.png").unlink()
    (data / "test" / "sad" / "1.png").unlink()
    assert run(capsys, "--ckpt", ckpt, "--data_root", data, "--pictures", tmp_path / "pictures")[0] == 0
    assert not (tmp_path / "pictures" / "failures.csv").exists()  # what a run before listed is no longer true


def test_where_nothing_can_be_read_there_is_one_sentence(capsys, ckpt, data, tmp_path):
    for file in (data / "test").rglob("*.png"):
        file.write_bytes(b"")
    code, found, err = run(capsys, "--ckpt", ckpt, "--data_root", data, "--pictures", tmp_path / "p")
    assert code == 2 and found is None and "none of the 13 images can be read" in err


def test_folders_of_other_classes_are_refused_with_both_lists(capsys, ckpt, tmp_path):
    for name in ("cat", "dog"):
        save_images(tmp_path / "pets" / "test" / name, 2)
    code, found, err = run(capsys, "--ckpt", ckpt, "--data_root", tmp_path / "pets", "--split", "test")
    assert code == 2 and found is None
    last = err.strip().splitlines()[-1]
    assert all(name in last for name in ("angry", "happy", "sad", "cat", "dog")), last


def test_labels_go_by_name_where_folders_and_outputs_are_in_another_order(capsys, tmp_path, data):
    other = save_random(tmp_path / "other.safetensors", classes=("sad", "happy", "angry"))
    _, found, _ = run(capsys, "--ckpt", other, "--data_root", data)
    assert [(row["label"], row["n"]) for row in found["per_label"]] == [("sad", 4), ("happy", 5), ("angry", 4)]


def test_a_flipped_view_changes_the_probabilities_but_not_the_images(capsys, ckpt, data):
    _, plain, _ = run(capsys, "--ckpt", ckpt, "--data_root", data)
    _, flipped, _ = run(capsys, "--ckpt", ckpt, "--data_root", data, "--flip")
    assert flipped["n"] == plain["n"] and flipped["loss"] != plain["loss"]


def test_pictures_and_a_gallery_are_drawn(capsys, ckpt, data, tmp_path):
    folder = tmp_path / "pictures"
    code, _, _ = run(capsys, "--ckpt", ckpt, "--data_root", data, "--pictures", folder, "--gallery", 2)
    assert code == 0
    drawn = {path.name for path in folder.iterdir()}
    assert drawn == {"confusion.png", "labels.png", "reliability.png", "gallery.png", "samples"}
    assert list((folder / "samples").rglob("*.png"))


def test_votes_for_several_classes_are_scored_as_such(capsys, tmp_path, shared):
    names = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
    ckpt = save_random(tmp_path / "run" / "best.safetensors", classes=names, multi_label=True)
    votes = (shared / "data/images/ferplus_labels/fer2013new.csv").read_text().splitlines()[:41]
    (tmp_path / "votes.csv").write_text("\n".join([votes[0], *(f"PublicTest,{v.split(',', 1)[1]}" for v in votes[1:])]))
    rng = np.random.default_rng(0)
    rows = [f"0,{' '.join(map(str, rng.integers(0, 255, 48 * 48)))},PublicTest" for _ in votes[1:]]
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    code, found, err = run(
        capsys, "--ckpt", ckpt, "--data_csv", tmp_path / "fer2013.csv", "--votes_csv", tmp_path / "votes.csv",
        "--split", "val", "--pictures", tmp_path / "pictures", "--gallery", 1,
    )  # fmt: skip
    assert code == 0, err
    assert {"map", "exact_match", "macro_f1"} <= set(found) and "acc" not in found and found["confusion"] is None
    assert not (tmp_path / "pictures" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "expected --ckpt (with --data_root), or --gt and --pred"),
        (["--gt", "a.json"], "expected --ckpt (with --data_root), or --gt and --pred"),
        (["--ckpt", "x", "--gt", "a.json", "--pred", "b.json"], "give one of the two"),
        (["--ckpt", "nowhere.safetensors", "--data_root", "x"], "nowhere.safetensors"),
        (["--ckpt", "CKPT"], "add --data_root"),
        (["--ckpt", "CKPT", "--data_root", "nowhere"], "nowhere"),
        (["--gt", "a.json", "--pred", "b.json", "--flip"], "--flip: expected only with"),
        (["--gt", "a.json", "--pred", "b.json", "--split", "val"], "--split val: expected a table"),
        (["--ckpt", "CKPT", "--data_root", "DATA", "--split", "tset"], "has no tset images; name another --split"),
        (["--ckpt", "CKPT", "--data_root", "x", "--val_split", "1.5"], "images.val_split: input should be less than 1"),
        (["--ckpt", "CKPT", "--data_root", "x", "--gallery", "2"], "add --pictures"),
        (["--ckpt", "CKPT", "--data_root", "x", "--device", "tpu"], "--device: expected auto, cpu, cuda"),
        (["--ckpt", "CKPT", "--data_root", "x", "--data_type", "RAF"], "images.data_type"),
    ],
)
def test_bad_arguments_end_with_code_2_and_one_sentence(capsys, ckpt, data, arguments, reason):
    arguments = [str({"CKPT": ckpt, "DATA": data}.get(argument, argument)) for argument in arguments]
    code = evaluate.main(["fer", *arguments])
    out, err = capsys.readouterr()
    assert code == 2 and not out and err.count("\n") == 1 and reason in err


def test_a_checkpoint_cut_in_half_is_refused(capsys, ckpt, data):
    ckpt.write_bytes(ckpt.read_bytes()[: ckpt.stat().st_size // 2])
    code, _, err = run(capsys, "--ckpt", ckpt, "--data_root", data)
    assert code == 2 and "cut off" in err
