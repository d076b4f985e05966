import gzip
import io
import lzma
import zipfile

import pytest
from openpyxl import Workbook

from affect.data.tables import read_table

TEXT = "name,label\na,happy\nb,\n"


def _zipped(text: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", text)
    return content.getvalue()


PACK = {"csv": str.encode, "csv.gz": lambda text: gzip.compress(text.encode()), "csv.zip": _zipped}
PACK["csv.xz"] = lambda text: lzma.compress(text.encode())


@pytest.mark.parametrize("ending", PACK)
def test_packed_tables_are_read_and_their_bombs_are_not(tmp_path, monkeypatch, ending):
    path = tmp_path / f"t.{ending}"
    path.write_bytes(PACK[ending](TEXT))
    assert read_table(path, "name").to_dict("list") == {"name": ["a", "b"], "label": ["happy", ""]}
    path.write_bytes(PACK[ending](TEXT + "a" * 2**21))
    monkeypatch.setenv("AFFECT_LIMITS", "memory_mb=1")
    with pytest.raises(ValueError, match=rf"t\.{ending}: expected at most 1 MB of memory"):
        read_table(path)


@pytest.mark.parametrize("cells", [["XFD1", "A200"], ["C1", "A1048576"], ["ZZ1", "A5000"]])
def test_a_workbook_of_far_cells_is_refused_before_its_empty_ones_are_made(tmp_path, cells):
    book = Workbook()
    for cell in cells:
        book.active[cell] = "x"
    book.save(tmp_path / "far.xlsx")
    with pytest.raises(ValueError, match=r"far\.xlsx: expected at most 512 MB of memory"):
        read_table(tmp_path / "far.xlsx")


def test_a_table_of_many_columns_and_empty_rows_is_refused(tmp_path):
    (tmp_path / "wide.csv").write_text("," * 40_000 + "\n" * 40_000)
    with pytest.raises(ValueError, match=r"wide\.csv: expected at most 512 MB"):
        read_table(tmp_path / "wide.csv")


def test_an_archive_of_two_tables_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", TEXT)
        archive.writestr("b.csv", TEXT)
    with pytest.raises(ValueError, match="it holds 2 files instead of one"):
        read_table(tmp_path / "t.zip")


@pytest.mark.parametrize("header", ["name,label,label", "name,label, label "])
def test_a_column_that_is_asked_for_and_there_twice_is_refused(tmp_path, header):
    (tmp_path / "t.csv").write_text(f"{header}\na,happy,sad\n")
    assert read_table(tmp_path / "t.csv", "name").name.tolist() == ["a"]
    with pytest.raises(ValueError, match=r"t\.csv: expected one column 'label', found two"):
        read_table(tmp_path / "t.csv", "name", "label")
