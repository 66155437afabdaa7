"""Rows of an .xlsx file: its first sheet, whose first row has the names of the columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from zipfile import BadZipFile

from offbook.data.json_text import Row, repeated
from offbook.errors import ConfigError, DataError, first_line, shorten


def read_sheet(path: Path) -> Iterator[Row]:
    """Yield the rows, with a DataError in place of each bad one; empty ones are none.

    A number or a date is text, as it would be in CSV.

    Raises:
        ConfigError: when openpyxl is not installed.
        DataError: when the file cannot be read, or has two columns of one name.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils import get_column_letter
    except ImportError:
        fix = "run `pip install 'offbook[xlsx]'`"
        raise ConfigError(".xlsx files need openpyxl", where=str(path), fix=fix) from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        table = enumerate(book.worksheets[0].iter_rows(values_only=True), 1)
        first = next(table, None)
        names = [str(value) if value is not None else "" for value in first[1]] if first else []
        if (name := repeated(filter(None, names))) is not None:
            what = f'two columns are named "{shorten(name)}"'
            raise DataError(what, where=f"{path}:1", fix="rename one")
        for number, values in table:
            where = f"{path}:{number}"
            cells = ["" if value is None else str(value) for value in values]
            row = list(zip_longest(names, cells, fillvalue=""))
            lost = [k for k, (name, cell) in enumerate(row, 1) if cell.strip() and not name]
            if lost:
                what = f"a value in column {get_column_letter(lost[0])}, which has no name"
                fix = "name the column in the first row, or empty the cell"
                yield DataError(what, where=where, fix=fix), where
            elif any(cells):
                yield {name: cell for name, cell in row if name}, where
    except (BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not valid XLSX: {first_line(error)}", where=str(path)) from None
