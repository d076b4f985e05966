"""The FER2013 CSV file in its variants: parts by Usage, classes by name, votes row by row, bad rows in the failures."""

import csv

import numpy as np
import pytest

from affect.data.sampling import Draw
from affect.expressions.config import ImagesConfig
from affect.expressions.image_set import check_images, open_images
from affect.expressions.samples import GRAY_MEAN, GRAY_STD, InputSpec
from affect.expressions.votes import EXPRESSIONS, NO_EXPRESSION, read_votes

SPEC = InputSpec(48, True, GRAY_MEAN, GRAY_STD)
USAGES = ["Training"] * 14 + ["PublicTest"] * 7 + ["PrivateTest"] * 7


def pixels(row, count=48 * 48):
    """Return pixels as text: another gray for each row, one white pixel at its start."""
    return " ".join(["255"] + [str(row % 200)] * (count - 1))


def rows(usages=USAGES):
    return [[str(row % 7), usage, pixels(row)] for row, usage in enumerate(usages)]


def write(path, content, header=("emotion", " Usage", " pixels")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *content])
    return path


def opened(path, **settings):
    return open_images(ImagesConfig(data_root=str(path), **settings), SPEC)


def counts(image_set):
    return np.bincount(image_set.labels, minlength=len(image_set.classes)).tolist()


@pytest.mark.parametrize("header", [("emotion", " Usage", " pixels"), ("emotion", "Usage", "pixels")])
def test_usage_gives_the_parts_and_numbers_the_classes(tmp_path, header):
    sets = opened(write(tmp_path / "fer2013.csv", rows(), header))
    assert {split: len(found) for split, found in sets.items()} == {"train": 14, "val": 7, "test": 7}
    assert sets["train"].classes == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert counts(sets["train"]) == [2] * 7
    assert sets["val"].names[0] == "row 14" and int(sets["val"].labels[3]) == 17 % 7


def test_pixels_arrive_unchanged_and_in_one_byte_each(tmp_path):
    train = opened(write(tmp_path / "fer2013.csv", rows()))["train"]
    picture = train.raw(5)
    assert picture.shape == (48, 48, 3) and picture[0, 0].tolist() == [255] * 3 and (picture[1:] == 5).all()
    assert train.source.dtype == np.uint8 and train.source.shape == (14, 48, 48)
    expected = (5 / 255 - GRAY_MEAN[0]) / GRAY_STD[0]
    assert train[5].image.shape == (1, 48, 48) and train[5].image[0, 9, 9] == pytest.approx(expected, abs=1e-5)
    assert not check_images(train, 0)
    flips = {float(train[Draw(5, cycle)].image[0, 0, 0]) for cycle in range(20)}
    assert len(flips) == 2  # the white pixel is in the left or in the right corner


def test_file_without_usage_is_cut_like_a_flat_folder(tmp_path):
    path = write(tmp_path / "x.csv", [[r[0], r[2]] for r in rows()], ("emotion", "pixels"))
    sets = opened(path, val_split=0.25, test_split=0.25)
    assert [counts(sets[split]) for split in ("train", "val", "test")] == [[2] * 7, [1] * 7, [1] * 7]


def test_file_without_a_public_test_cuts_val_from_train(tmp_path):
    path = write(tmp_path / "x.csv", rows(["Training"] * 70 + ["PrivateTest"] * 7))
    assert {split: len(found) for split, found in opened(path, val_split=0.1).items()} == {
        "train": 63,
        "val": 7,
        "test": 7,
    }


def test_classes_are_found_by_name_in_another_order_and_others_left_out(tmp_path, caplog):
    sets = opened(write(tmp_path / "x.csv", rows()), classes=["neutral", "sadness", "happiness"])
    assert counts(sets["train"]) == [2, 2, 2]
    assert sorted(sets["train"].names) == sorted(f"row {row}" for row in (3, 4, 6, 10, 11, 13))
    assert "16 of 28 images have no label among neutral, sadness, happiness" in caplog.text


@pytest.mark.parametrize(
    ("bad", "stage", "reason"),
    [
        (["0", "Training", pixels(0, 2303)], "pixels", "expected 2304 pixels (48 x 48), found 2303"),
        (["0", "Training", pixels(0, 2305)], "pixels", "found 2305"),
        (["0", "Training", ""], "pixels", "found 0"),
        (["0", "Training", pixels(0).replace("255", "25.5")], "pixels", "found '25.5'"),
        (["0", "Training", pixels(0).replace("255", "256")], "pixels", "found '256'"),
        (["0", "Training", pixels(0).replace("255", "-1")], "pixels", "found '-1'"),
        (["7", "Training", pixels(0)], "label", "expected an emotion from 0 to 6, found '7'"),
        (["happy", "Training", pixels(0)], "label", "found 'happy'"),
        (["0", "Testing", pixels(0)], "label", "found 'Testing'"),
        (["0"], "label", "found ''"),
    ],
)
def test_bad_row_is_a_failure_and_the_others_stay(tmp_path, caplog, bad, stage, reason):
    content = rows()
    content.insert(3, bad)
    train = opened(write(tmp_path / "x.csv", content))["train"]
    sets = {split: len(found) for split, found in opened(tmp_path / "x.csv").items()}
    assert sets == {"train": 14, "val": 7, "test": 7}
    (failure,) = train.failures
    assert (failure.name, failure.stage) == ("row 3", stage) and reason in failure.reason
    assert failure.reason.startswith("row 3 (line 5): ") and "1 rows cannot be used" in caplog.text
    assert train.names[3] == "row 4"


def test_a_bad_test_row_is_a_failure_of_test(tmp_path):
    content = [*rows(), ["0", "PrivateTest", "1 2 3"]]
    sets = opened(write(tmp_path / "x.csv", content))
    assert [len(sets[split].failures) for split in ("train", "val", "test")] == [0, 0, 1]


def test_mostly_bad_file_is_an_error(tmp_path):
    content = [[r[0], r[1], "1 2 3"] if i % 3 else r for i, r in enumerate(rows())]
    with pytest.raises(ValueError, match=r"18 of 28 rows cannot be used, the first is row 1 \(line 3\): expected 2304"):
        opened(write(tmp_path / "x.csv", content))


@pytest.mark.parametrize(("header", "missing"), [(("label", "pixels"), "emotion"), (("emotion", "image"), "pixels")])
def test_missing_column_is_named(tmp_path, header, missing):
    with pytest.raises(ValueError, match=f"found no {missing} among"):
        opened(write(tmp_path / "x.csv", [["0", pixels(0)]], header))


@pytest.mark.parametrize("content", [b"", b"emotion,pixels\n", b"\xff\xd8\xff\xe0\x00\x10"])
def test_file_without_rows_or_of_another_kind_is_an_error(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.csv: expected"):
        opened(tmp_path / "x.csv")


@pytest.fixture
def voted(shared, tmp_path):
    """A CSV file of the first 60 rows, and the real votes on them."""
    votes = shared / "data/images/ferplus_labels/fer2013new.csv"
    content = [[str(row % 7), "Training", pixels(row)] for row in range(60)]
    return write(tmp_path / "fer2013.csv", content), votes


def test_majority_of_the_votes_labels_the_rows(voted):
    path, votes = voted
    train = opened(path, votes_csv=str(votes), val_split=0)["train"]
    assert train.classes == ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
    table = read_votes(votes).counts
    for name, label in zip(train.names, train.labels.tolist(), strict=True):
        row = table[int(name.removeprefix("row "))]
        assert row[:8].argmax() == label and row[label] == row.max()
    assert 40 < len(train) < 60
    assert np.array_equal(train.targets, np.eye(8)[train.labels])


def test_soft_and_several_truths_label_by_the_strongest(voted):
    path, votes = voted
    table = read_votes(votes).counts
    for target in ("soft", "multi_label"):
        train = opened(path, votes_csv=str(votes), votes_target=target, val_split=0)["train"]
        for name, label in zip(train.names, train.labels.tolist(), strict=True):
            row = table[int(name.removeprefix("row "))][:8]
            assert row[label] == row.max()
        sums = train.targets.sum(1)
        assert np.allclose(sums, 1) if target == "soft" else sums.max() >= 2


def test_votes_follow_classes_by_name(voted):
    path, votes = voted
    seven = opened(path, votes_csv=str(votes), votes_target="soft", data_type="FER2013", val_split=0)["train"]
    eight = opened(path, votes_csv=str(votes), votes_target="soft", val_split=0)["train"]
    assert seven.classes[0] == "angry" and np.allclose(seven.targets.sum(1), 1)
    both = sorted(set(seven.names) & set(eight.names))
    for name in both:
        a, b = (dict(zip(s.classes, s[s.names.index(name)].target.tolist(), strict=True)) for s in (seven, eight))
        if not b["contempt"]:
            assert a["happy"] == b["happiness"] and a["angry"] == b["anger"] and a["neutral"] == b["neutral"]


def test_votes_give_the_parts_where_the_file_has_none(voted, tmp_path):
    _, votes = voted
    path = write(tmp_path / "x.csv", [["0", pixels(row)] for row in range(30)], ("emotion", "pixels"))
    assert set(opened(path, votes_csv=str(votes), val_split=0.2)) == {"train", "val"}
    assert len(opened(path, votes_csv=str(votes), val_split=0)) == 1


def test_votes_on_another_file_are_an_error(voted, tmp_path):
    _, votes = voted
    path = write(tmp_path / "sorted.csv", [["0", "PrivateTest", pixels(row)] for row in range(5)])
    with pytest.raises(ValueError, match="row 0 to be for PrivateTest"):
        opened(path, votes_csv=str(votes))


def test_votes_on_fewer_rows_are_an_error(voted, tmp_path):
    path, votes = voted
    (tmp_path / "short.csv").write_text("".join(votes.read_text().splitlines(keepends=True)[:31]))
    with pytest.raises(ValueError, match="found 30 rows"):
        opened(path, votes_csv=str(tmp_path / "short.csv"))


def test_ferplus_without_votes_is_an_error(voted):
    with pytest.raises(ValueError, match=r"set images\.votes_csv"):
        opened(voted[0], data_type="FERPlus")


def votes_of(path, usages):
    """Write votes for neutral on each row."""
    lines = [
        ",".join(["Usage", "Image name", *EXPRESSIONS, *NO_EXPRESSION]),
        *(f"{usage},fer{i}.png,9,0,0,0,0,0,0,0,0,0" for i, usage in enumerate(usages)),
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_usage_is_compared_whatever_its_letters(tmp_path):
    path = write(tmp_path / "fer2013.csv", rows(["training"]))
    votes = votes_of(tmp_path / "votes.csv", ["TRAINING"])
    assert len(opened(path, votes_csv=votes, val_split=0)["train"]) == 1


@pytest.mark.parametrize("usage", ["", "Holdout"])
def test_votes_of_an_unknown_usage_are_an_error(tmp_path, usage):
    path = write(tmp_path / "fer2013.csv", [["6", pixels(0)]], ("emotion", "pixels"))
    with pytest.raises(ValueError, match=r"votes\.csv: expected the Usage Training, .* in row 0, found"):
        opened(path, votes_csv=votes_of(tmp_path / "votes.csv", [usage]))
