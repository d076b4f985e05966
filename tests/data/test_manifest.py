import pytest

from affect.data.config import DatasetConfig
from affect.data.manifest import parse_labels, read_clips, read_manifest, read_table


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "clips.csv"
    path.write_bytes(text.encode(encoding))
    return DatasetConfig(csv_path=str(path))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['happy', 'excited']", ("happy", "excited")),
        ("happy, not sure", ("happy", "not sure")),
        ('["a"]', ("a",)),
        ("", ()),
        (None, ()),
        (float("nan"), ()),
        (["a", " b"], ("a", "b")),
    ],
)
def test_label_cells_of_every_form_are_read(cell, words):
    assert parse_labels(cell) == words


def test_clips_carry_what_the_table_says(tmp_path):
    rows = 'a,"Hi, you","[\'sad\']",Because.,-0.5,train\nb,,,,,test\n'
    config = table(tmp_path, "name,subtitle,openset,reason,valence,split\n" + rows)
    (clip,) = read_clips("toy", config, "train")
    assert (clip.name, clip.subtitle, clip.labels, clip.description) == ("a", "Hi, you", ("sad",), "Because.")
    assert clip.valence == -0.5
    assert read_clips("toy", config, "test")[0].valence is None
    assert len(read_clips("toy", config)) == 2
    assert read_manifest("toy", config).lacking == {}


def test_columns_that_are_not_there_are_remembered(tmp_path):
    lacking = read_manifest("toy", table(tmp_path, "name,mood\na,sad\n"), "train").lacking
    assert set(lacking) == {"labels", "description", "valence"}
    assert (
        "clips.csv: expected a column 'openset', found name, mood; name it in datasets.toy.label_column"
        in (lacking["labels"])
    )


def test_a_table_without_splits_is_training_and_test_data_alone(tmp_path):
    config = table(tmp_path, "name\na\n")
    assert read_clips("toy", config, "train") == read_clips("toy", config, "test")
    with pytest.raises(ValueError, match=r"expected clips of split 'val', found no column 'split'.* train and test"):
        read_clips("toy", config, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x\na,1\n", "expected a column 'name'"),
        ("name\na\na\n", "expected each clip once"),
        ("name\n../up\n", "cannot be used as a file name"),
        ("", "expected a table with a header"),
        ("name,split\na,train\nb,val\n", r"clips of split 'test', found none; it has 'train' \(1\), 'val' \(1\)"),
        ("name,split\n", "expected clips of split 'test', found none; it has no rows at all"),
        ("name\n", "expected one row a clip, found none"),
        ("name,valence\na,good\n", "clip 'a' has the valence 'good': expected a number"),
        ("name,subtitle\na,hello, you\n", "rows have more cells than the header"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_clips("toy", table(tmp_path, text), "test")


def test_a_data_set_without_a_table_names_the_key():
    with pytest.raises(ValueError, match=r"datasets\.toy\.csv_path: .* need none: mercaptionplus, .*, ovmerdplus"):
        read_clips("toy", DatasetConfig())


def test_a_table_that_is_not_there_is_told_by_its_key():
    with pytest.raises(ValueError, match=r"^datasets\.mine\.csv_path: no such file: nix\.csv"):
        read_clips("mine", DatasetConfig(csv_path="nix.csv"))


@pytest.mark.parametrize("commas", [",", ",,,"])
def test_commas_at_the_end_of_rows_shift_no_column(tmp_path, commas):
    config = table(tmp_path, f"name,subtitle\n007,hello{commas}\nb,{commas}\n")
    assert [(clip.name, clip.subtitle) for clip in read_clips("toy", config)] == [("007", "hello"), ("b", "")]


def test_windows_quotes_are_read(tmp_path):
    config = table(tmp_path, "name,subtitle\na,It\x92s\n".replace("\x92", "’"), "cp1252")
    assert read_clips("toy", config)[0].subtitle == "It’s"


def test_real_tables_are_read(shared):
    assert len(read_table(shared / "data/text/MELD_dev_sent_emo.csv")) > 1000
    assert list(read_table(shared / "data/video/grid_transcripts.tsv")) == ["file", "transcript"]
