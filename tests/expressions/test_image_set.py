"""Image folders in every layout: classes by name, splits that never overlap, one sentence for what is wrong."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import affect.expressions.image_set
from affect.data.sampling import Draw
from affect.expressions.config import ImagesConfig
from affect.expressions.image_files import ImageError
from affect.expressions.image_set import check_images, collate, open_images
from affect.expressions.presets import PRESETS
from affect.expressions.records import Records, one_hot, stratified_cut
from affect.expressions.samples import IMAGENET_MEAN, IMAGENET_STD, InputSpec

SPEC = InputSpec(16, False, IMAGENET_MEAN, IMAGENET_STD)


def add(root, *folders, count=1, colour=(90, 120, 150)):
    """Save small pictures in folders below a root."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (20, 24), colour).save(root / folder / f"{i:02}.png")


def opened(root, *args, classes=None, seed=0, splits=("train", "val", "test"), **settings):
    config = ImagesConfig(data_root=str(root), **settings)
    return open_images(config, SPEC, splits, classes, seed)


def counts(image_set):
    return dict(zip(image_set.classes, np.bincount(image_set.labels, minlength=len(image_set.classes)), strict=True))


def names(sets):
    return [name for image_set in sets.values() for name in image_set.names]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders_are_taken_as_they_are(tmp_path, val):
    add(tmp_path, "train/happy", "train/sad", count=5)
    add(tmp_path, f"{val}/happy", f"{val}/sad", count=2)
    sets = opened(tmp_path, val_split=0.5)
    assert list(sets) == ["train", "val"]
    assert counts(sets["train"]) == {"happy": 5, "sad": 5} and counts(sets["val"]) == {"happy": 2, "sad": 2}
    assert sets["val"].names[0] == f"{val}/happy/00.png" and sets["val"].split == "val"


def test_train_and_test_folders_cut_val_from_train(tmp_path):
    add(tmp_path, "train/happy", "train/sad", count=20)
    add(tmp_path, "test/happy", "test/sad", count=3)
    sets = opened(tmp_path, val_split=0.1)
    assert [counts(sets[split])["sad"] for split in ("train", "val", "test")] == [18, 2, 3]
    assert len(set(names(sets))) == 46


def test_val_split_zero_validates_on_test_and_warns_once(tmp_path, caplog):
    add(tmp_path, "train/a", "train/b", "test/a", "test/b")
    sets = opened(tmp_path, val_split=0)
    assert sets["val"].names == sets["test"].names and sets["val"].split == "val"
    assert [record.message for record in caplog.records if "test validates" in record.message] == [caplog.messages[0]]


def test_class_folders_alone_are_cut_in_three(tmp_path):
    add(tmp_path, "happy", count=40)
    add(tmp_path, "sad", count=10)
    sets = opened(tmp_path, val_split=0.1, test_split=0.2)
    assert [counts(sets[split]) for split in ("train", "val", "test")] == [
        {"happy": 28, "sad": 7},
        {"happy": 4, "sad": 1},
        {"happy": 8, "sad": 2},
    ]
    assert len(set(names(sets))) == 50


def test_a_train_folder_alone_is_cut_too(tmp_path):
    add(tmp_path, "train/a", "train/b", count=10)
    assert {split: len(found) for split, found in opened(tmp_path, val_split=0.2).items()} == {"train": 16, "val": 4}


def test_cut_depends_on_the_seed_and_not_on_the_order_of_classes(shared):
    root = shared / "data/images/muxspace"
    first, again, other = (set(opened(root, split_seed=seed)["val"].names) for seed in (1, 1, 2))
    assert first == again and first != other
    backwards = opened(root, split_seed=1, classes=sorted(PRESETS["FERPlus"].classes)[::-1])
    assert set(backwards["val"].names) == first


def test_cut_of_real_folders_keeps_the_proportions(shared):
    sets = opened(shared / "data/images/muxspace", val_split=0.2, test_split=0.2)
    assert sum(map(len, sets.values())) == 286 and len(set(names(sets))) == 286
    assert counts(sets["val"]) == counts(sets["test"]) == {
        "anger": 9, "contempt": 1, "disgust": 9, "fear": 2, "happiness": 9, "neutral": 9, "sadness": 9, "surprise": 9,
    }  # fmt: skip


def test_permuted_records_give_the_same_cut():
    names = [f"{folder}/{i:02}.png" for folder in "ab" for i in range(12)]
    labels = np.array([name[0] == "b" for name in names], np.int64)
    records = Records(names, labels, one_hot(labels, 2), Path("data"))
    shuffled = records.take(np.random.default_rng(0).permutation(24))
    for before, after in zip(*(stratified_cut(each, (0.25, 0.25), 7) for each in (records, shuffled)), strict=True):
        assert set(before.names) == set(after.names) and len(before.names) in (6, 12)


def test_smallest_class_is_in_every_part_it_can_be_in(tmp_path):
    add(tmp_path, "many", count=50)
    add(tmp_path, "two", count=2)
    add(tmp_path, "one", count=1)
    sets = opened(tmp_path, val_split=0.1)
    assert counts(sets["train"]) == {"many": 45, "one": 1, "two": 1}
    assert counts(sets["val"]) == {"many": 5, "one": 0, "two": 1}


@pytest.mark.parametrize("first", [0, 1])
def test_raf_db_numbers_mean_the_official_classes_from_zero_or_one(tmp_path, first):
    for number in range(7):
        add(tmp_path, f"train/{number + first}", f"valid/{number + first}", count=number + 1)
    sets = opened(tmp_path, data_type="RAF-DB")
    assert counts(sets["train"]) == {
        "surprise": 1, "fear": 2, "disgust": 3, "happiness": 4, "sadness": 5, "anger": 6, "neutral": 7,
    }  # fmt: skip
    assert sets["train"].name == "RAF-DB"


def test_raf_db_numbers_that_could_mean_either_are_an_error(tmp_path):
    add(tmp_path, "train/1", "train/2")
    with pytest.raises(ValueError, match="from 0 or from 1"):
        opened(tmp_path, data_type="RAF-DB")


def test_contempt_is_left_out_of_affectnet_7_with_a_warning(tmp_path, caplog):
    for number in range(8):
        add(tmp_path, f"train/{number}", f"val/{number}", count=2)
    seven, eight = (opened(tmp_path, data_type=f"AffectNet-{n}") for n in (7, 8))
    assert len(seven["train"]) == 14 and len(eight["train"]) == 16
    assert eight["train"].classes[7] == "contempt" and "contempt" not in seven["train"].classes
    assert "train/7" in caplog.text and not seven["train"].failures, "left out on purpose is no failure"


def test_folder_names_find_their_class_in_any_spelling_and_place(tmp_path):
    # "neutral" sorts before "sad": a label by position would swap the two
    for i, folder in enumerate(["angry", "Disgust", "fearful", "HAPPY", "neutral", "sad", "surprised"]):
        add(tmp_path, f"train/{folder}", f"test/{folder}", count=i + 1)
    found = counts(opened(tmp_path, data_type="FER2013", val_split=0)["train"])
    assert found == {"angry": 1, "disgust": 2, "fear": 3, "happy": 4, "sad": 6, "surprise": 7, "neutral": 5}
    assert list(found) == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def test_classes_of_a_checkpoint_go_before_those_of_the_folders(tmp_path):
    add(tmp_path, "val/happy", "val/sad", count=2)
    sets = opened(tmp_path, classes=("sadness", "anger", "happiness"))
    assert list(sets) == ["val"] and counts(sets["val"]) == {"sadness": 2, "anger": 0, "happiness": 2}


def test_folders_that_are_other_classes_than_asked_for_are_an_error(tmp_path):
    add(tmp_path, "train/cat", "train/dog")
    with pytest.raises(ValueError, match=r"none for happy, sad but cat, dog; correct images.classes"):
        opened(tmp_path, classes=("happy", "sad"))
    add(tmp_path / "n", "train/0", "train/1")
    with pytest.raises(ValueError, match=r"set images.data_type"):
        opened(tmp_path / "n", classes=("happy", "sad"))


def test_val_folder_that_train_does_not_have_is_named(tmp_path):
    add(tmp_path, "train/happy", "train/sad", "val/happy", "val/bored")
    with pytest.raises(ValueError, match="found bored beside them"):
        opened(tmp_path)


def test_two_folders_of_one_class_are_an_error_unless_a_class_list_joins_them(tmp_path):
    add(tmp_path, "happy", "happiness", "sad", count=3)
    with pytest.raises(ValueError, match="each once"):
        opened(tmp_path)
    assert counts(opened(tmp_path, classes=("happy", "sad"), val_split=0)["train"]) == {"happy": 6, "sad": 3}


def test_empty_class_folder_is_a_warning_and_stays_a_class(tmp_path, caplog):
    add(tmp_path, "train/happy", "val/happy", count=2)
    (tmp_path / "train/sad").mkdir()
    sets = opened(tmp_path)
    assert sets["train"].classes == ("happy", "sad") and "train has no image of sad" in caplog.text


@pytest.mark.parametrize("folders", [(), ("train/happy", "train/sad"), ("happy",)])
def test_no_images_at_all_is_an_error(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="found none"):
        opened(tmp_path)


def test_missing_root_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"found no .*nowhere"):
        opened(tmp_path / "nowhere")


def test_two_folders_for_one_part_are_an_error(tmp_path):
    add(tmp_path, "train/a", "val/a", "valid/a")
    with pytest.raises(ValueError, match="one val folder, found val and valid"):
        opened(tmp_path)


def test_other_files_hidden_ones_and_loops_are_passed_over_and_links_followed(tmp_path):
    add(tmp_path / "data", "train/a", "train/b", "train/.hidden", "train/__MACOSX", "elsewhere")
    folder = tmp_path / "data/train/a"
    (folder / "readme.txt").write_text("x")
    (folder / ".00.png").write_bytes(b"x")
    (folder / "inner").mkdir()
    (folder / "inner" / "link.png").symlink_to(tmp_path / "data/elsewhere/00.png")
    (folder / "inner" / "loop").symlink_to(folder)
    found = opened(tmp_path / "data", val_split=0)["train"].names
    assert found == ["train/a/00.png", "train/a/inner/link.png", "train/b/00.png"]


def test_broken_images_become_failures_and_can_be_left_out(tmp_path):
    add(tmp_path, "a", "b", count=5)
    whole = (tmp_path / "a/00.png").read_bytes()
    (tmp_path / "a/01.png").write_bytes(whole[:50])
    (tmp_path / "b/03.png").write_bytes(b"nothing")
    train = opened(tmp_path, val_split=0)["train"]
    for workers in (0, 1):
        failures = check_images(train, workers)
        assert [(failure.name, failure.stage) for failure in failures] == [
            ("a/01.png", "decode"),
            ("b/03.png", "decode"),
        ]
    with pytest.raises(ImageError, match=r"a/01\.png"):
        train[1]
    rest = train.take([0, *range(2, 8), 9])
    assert len(rest) == 8 and not check_images(rest, 0) and "a/01.png" not in rest.names
    assert rest.labels.tolist() == [0] * 4 + [1] * 4 and rest.raw(7).shape == (24, 20, 3)


def test_int_gives_the_plain_picture_and_a_draw_the_augmented_one(shared):
    sets = opened(shared / "data/images/muxspace", seed=3, random_erasing=1.0)
    train, val = sets["train"], sets["val"]
    plain, changed = train[4], train[Draw(4, 0)]
    assert not torch.equal(plain.image, changed.image) and plain.name == changed.name == train.names[4]
    assert torch.equal(changed.image, train[Draw(4, 0)].image)
    assert not torch.equal(changed.image, train[Draw(4, 1)].image)
    assert torch.equal(val[2].image, val[Draw(2, 1)].image)
    unchanged = opened(shared / "data/images/muxspace", augment=False, random_erasing=1.0)["train"]
    assert torch.equal(plain.image, unchanged[Draw(4, 0)].image)


def test_workers_give_the_same_batches_as_the_process_itself(shared):
    train = opened(shared / "data/images/muxspace", auto_augment=True)["train"]
    batches = [[Draw(i, 0) for i in range(4)], [Draw(i, 1) for i in range(4)]]
    own, others = (list(DataLoader(train, batch_sampler=batches, num_workers=n, collate_fn=collate)) for n in (0, 1))
    for (mine, failed), (theirs, _) in zip(own, others, strict=True):
        assert not failed
        assert mine.names == theirs.names and torch.equal(mine.images, theirs.images)
        assert mine.images.shape == (4, 3, 16, 16) and torch.equal(mine.targets.argmax(1), mine.labels)


def test_iterating_a_set_ends(tmp_path):
    add(tmp_path, "a", "b", count=2)
    assert [sample.label for sample in opened(tmp_path, val_split=0)["train"]] == [0, 0, 1, 1]


def cut_middle(picture, least):
    """Stand in for face alignment: the middle of bright pictures."""
    return picture[4:-4, 4:-4] if picture.mean() > least else None


def test_aligned_set_cuts_faces_and_lists_pictures_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(affect.expressions.image_set, "face_straightener", lambda: partial(cut_middle, least=50))
    add(tmp_path, "a", count=3, colour=(200, 200, 200))
    add(tmp_path, "b", count=2, colour=(10, 10, 10))
    train = opened(tmp_path, align=True, val_split=0)["train"]
    assert train.raw(0).shape == (16, 12, 3)
    failures = check_images(train, 0)
    assert [(failure.name, failure.stage) for failure in failures] == [("b/00.png", "align"), ("b/01.png", "align")]
    with pytest.raises(ImageError, match="expected a face, found none"):
        train[3]
    assert opened(tmp_path, val_split=0)["train"].raw(0).shape == (24, 20, 3)


def test_nothing_is_logged_about_sound_data(shared, caplog):
    caplog.set_level(logging.INFO)
    opened(shared / "data/images/muxspace")
    assert not caplog.records
