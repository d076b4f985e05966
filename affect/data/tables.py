"""Tables as strings: CSV, tab-separated, packed or not, and workbooks."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from affect.core.reading import limit, reading, require_memory

if TYPE_CHECKING:
    import pandas as pd

_CELL_BYTES = 200  # of a workbook, while it is read
_REFERENCE = re.compile(rb"""\br=["']([A-Z]{0,3})(\d+)["']""")


def read_table(path: str | Path, *columns: str, advice: str = "name another table") -> pd.DataFrame:
    """Return a table (CSV; tab-separated where it ends in `.tsv`; a workbook, `.xlsx`) as strings; empty cells are ''.

    CSV may be packed (`.gz`, `.bz2`, `.xz`, `.zip`). Raises ValueError when the file is missing, empty, too large or no
    table, or lacks one of the columns: `advice` says what to do.
    """
    import pandas as pd  # slow to import, and only tables need it

    path = Path(path)
    with reading(path, "a table with a header", advice):
        if path.suffix == ".xlsx":
            _require_small_workbook(path)
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        else:
            table = _parse_csv(_unpacked(path), "\t" if ".tsv" in path.suffixes[-2:] else ",", path)
        table = table.rename(columns=lambda name: str(name).strip())
        if missing := [column for column in columns if column not in table]:
            raise ValueError(f"{path}: expected a column {missing[0]!r}, found {', '.join(table) or 'none'}; {advice}")
        if twice := [column for column in columns if list(table).count(column) > 1 or f"{column}.1" in table]:
            raise ValueError(f"{path}: expected one column {twice[0]!r}, found two; {advice}")  # pandas counts them
    return table


def _open_zip(path: Path, _: str) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    if len(archive.namelist()) != 1:
        raise ValueError(f"it holds {len(archive.namelist())} files instead of one")
    return archive.open(archive.namelist()[0])


_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": _open_zip}


def _unpacked(path: Path) -> bytes:
    with _OPEN.get(path.suffix, open)(path, "rb") as handle:
        content = handle.read(int(limit("memory_mb") * 2**20) + 1)
    require_memory(len(content), path)
    return content


def _parse_csv(content: bytes, separator: str, path: Path) -> pd.DataFrame:
    """Return a table whose rows may end in commas that the header lacks; pandas would take the names for an index."""
    import pandas as pd

    first = re.split(rb"[\r\n]+", content.lstrip(b"\r\n"), maxsplit=2)[:2]
    width = 1 + max(line.count(separator.encode()) for line in first)
    require_memory(8 * width * (content.count(b"\n") + content.count(b"\r")), path)

    def parse(**given: Any) -> pd.DataFrame:
        given |= {"sep": separator, "dtype": str, "keep_default_na": False}
        try:
            return pd.read_csv(io.BytesIO(content), encoding="utf-8-sig", **given)
        except UnicodeDecodeError:  # some public tables hold Windows quotes
            return pd.read_csv(io.BytesIO(content), encoding="cp1252", **given)

    table = parse()
    if isinstance(table.index, pd.RangeIndex):
        return table
    surplus = [f"surplus {level}" for level in range(table.index.nlevels)]
    whole = parse(header=0, names=[*table, *surplus], index_col=False)
    if whole[surplus].ne("").any(axis=None):
        raise ValueError("rows have more cells than the header: put cells that hold commas in quotes")
    return whole[list(table)]


def _require_small_workbook(path: Path) -> None:
    """Raise ValueError where the rows and columns that a workbook's cells are said to be in would fill the memory."""
    from openpyxl.utils import column_index_from_string

    with zipfile.ZipFile(path) as archive:
        require_memory(sum(member.file_size for member in archive.infolist()), path)
        for name in archive.namelist():
            if name.startswith("xl/worksheets/"):
                found = _REFERENCE.findall(archive.read(name))
                letters = {of.decode() for of, _ in found if of}
                columns = max(map(column_index_from_string, letters), default=1)
                require_memory(_CELL_BYTES * columns * max((int(row) for _, row in found), default=0), path)
