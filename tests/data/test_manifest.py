import pytest

from affect.config import DatasetConfig
from affect.data.manifest import parse_labels, read_clips, read_table


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
    config = table(tmp_path, 'name,subtitle,openset,reason,split\na,"Hi, you","[\'sad\']",Because.,train\nb,,,,test\n')
    (clip,) = read_clips("toy", config, "train")
    assert (clip.name, clip.subtitle, clip.labels, clip.description) == ("a", "Hi, you", ("sad",), "Because.")
    assert len(read_clips("toy", config)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x\na,1\n", "expected a column 'name'"),
        ("name\na\na\n", "expected each clip once"),
        ("name\n../up\n", "cannot be used as a file name"),
        ("", "expected a table with a header"),
        ("name,split\na,train\n", "expected clips of split 'test', found none"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_clips("toy", table(tmp_path, text), "test")


def test_a_data_set_without_a_table_names_the_key():
    with pytest.raises(ValueError, match=r"datasets\.toy\.csv_path"):
        read_clips("toy", DatasetConfig())


def test_windows_quotes_are_read(tmp_path):
    config = table(tmp_path, "name,subtitle\na,It\x92s\n".replace("\x92", "’"), "cp1252")
    assert read_clips("toy", config)[0].subtitle == "It’s"


def test_real_tables_are_read(shared):
    assert len(read_table(shared / "data/text/MELD_dev_sent_emo.csv")) > 1000
    assert list(read_table(shared / "data/video/grid_transcripts.tsv")) == ["file", "transcript"]
