"""FER+ votes: majorities, distributions and several truths as the paper's reader counts them, on the real table."""

import numpy as np
import pytest

from affect.expressions.votes import EXPRESSIONS, majority, multi_label, read_votes, soft


def votes(**counts):
    """Return votes [1, 10] on one image."""
    return np.array([[counts.get(name, 0) for name in (*EXPRESSIONS, "unknown", "NF")]])


def true_of(targets):
    """Return what is true of one image -> how much."""
    return {name: round(float(value), 3) for name, value in zip(EXPRESSIONS, targets[0], strict=True) if value}


def test_clear_majority_wins():
    assert true_of(majority(votes(happiness=6, neutral=4))) == {"happiness": 1}


@pytest.mark.parametrize(
    "counts",
    [
        {"happiness": 5, "neutral": 5},
        {"happiness": 4, "neutral": 3, "sadness": 3},
        {"unknown": 6, "neutral": 4},
        {"NF": 10},
        dict.fromkeys(EXPRESSIONS, 1),
        {},
    ],
    ids=["tie", "no half", "unknown", "no face", "all alone", "no votes"],
)
def test_without_a_majority_there_is_no_target(counts):
    assert true_of(majority(votes(**counts))) == {}


def test_single_votes_do_not_count():
    # 5 of 10 is no majority, but 5 of the 8 that are shared is
    assert true_of(majority(votes(anger=5, sadness=3, fear=1, disgust=1))) == {"anger": 1}
    assert true_of(soft(votes(anger=6, sadness=2, fear=1, disgust=1))) == {"anger": 0.75, "sadness": 0.25}


def test_soft_targets_are_distributions_over_the_expressions():
    assert true_of(soft(votes(anger=6, sadness=2, unknown=2))) == {"anger": 0.75, "sadness": 0.25}
    assert true_of(soft(votes(anger=3, sadness=2, unknown=5))) == {}
    assert true_of(soft(votes(anger=3, sadness=3, unknown=4))) == {}


def test_multi_label_takes_what_three_of_ten_see():
    assert true_of(multi_label(votes(fear=5, surprise=3, neutral=2))) == {"fear": 1, "surprise": 1}
    assert true_of(multi_label(votes(fear=4, unknown=6))) == {}
    assert true_of(multi_label(votes(neutral=3, happiness=2, sadness=2, anger=3))) == {"neutral": 1, "anger": 1}
    assert true_of(multi_label(votes(neutral=4, happiness=2, sadness=2, anger=2))) == {}


def test_real_table_has_a_row_for_every_image(shared):
    table = read_votes(shared / "data/images/ferplus_labels/fer2013new.csv")
    assert table.counts.shape == (35887, 10)
    assert [table.usages.count(usage) for usage in ("Training", "PublicTest", "PrivateTest")] == [28709, 3589, 3589]
    assert (table.counts.sum(axis=1) == 10).sum() == 35886


def test_real_majorities_of_each_part_are_counted(shared):
    table = read_votes(shared / "data/images/ferplus_labels/fer2013new.csv")
    clear, usages = majority(table.counts).any(axis=1), np.array(table.usages)
    found = [int(clear[usages == usage].sum()) for usage in ("Training", "PublicTest", "PrivateTest")]
    assert found == [25060, 3199, 3153]


def test_real_targets_agree_with_each_other(shared):
    counts = read_votes(shared / "data/images/ferplus_labels/fer2013new.csv").counts
    one, share, several = majority(counts), soft(counts), multi_label(counts)
    assert set(one.sum(axis=1)) == {0, 1} and np.allclose(share.sum(axis=1)[share.any(axis=1)], 1)
    clear = one.any(axis=1)
    assert (share[clear].argmax(axis=1) == one[clear].argmax(axis=1)).all()
    assert (several[clear] >= one[clear]).all() and several.sum(axis=1).max() == 3
    # by a loop over the rows that follows the paper's reader step by step
    expected = np.zeros(len(EXPRESSIONS), int)
    for row in counts.tolist():
        kept = [count if count > 1 else 0 for count in row]
        if max(kept) * 2 > sum(kept) and kept.index(max(kept)) < len(EXPRESSIONS):
            expected[kept.index(max(kept))] += 1
    assert one.sum(axis=0).astype(int).tolist() == expected.tolist() and expected.sum() > 30000


def test_label_file_of_the_image_folders_is_refused(shared):
    with pytest.raises(ValueError, match="expected the columns Usage"):
        read_votes(shared / "data/images/ferplus_labels/data_FER2013Test_label.csv")


HEADER = "Usage,Image name," + ",".join(EXPRESSIONS) + ",unknown,NF\n"


@pytest.mark.parametrize(
    "row", ["Training,x.png,1,2", "Training,x.png,1,2,3,4,5,6,7,8,9,x", "", "Training,x.png" + ",-1" * 10]
)
def test_bad_row_is_named_by_its_line(tmp_path, row):
    (tmp_path / "v.csv").write_text(HEADER + "Training,y.png" + ",1" * 10 + "\n" + row + "\n")
    with pytest.raises(ValueError, match=r"v\.csv line 3: expected"):
        read_votes(tmp_path / "v.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "v.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.csv: expected"):
        read_votes(tmp_path / "v.csv")
