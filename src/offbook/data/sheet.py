"""Rows of an .xlsx file: its first sheet, whose first row has the names of the columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from offbook.data.json_text import Row, repeated
from offbook.errors import ConfigError, DataError, first_line, shorten


def read_sheet(path: Path) -> Iterator[Row]:
    """Yield the rows; empty ones are none.

    Raises:
        ConfigError: when openpyxl is not installed.
        DataError: when the file cannot be read, or has two columns of one name.
    """
    try:
        from openpyxl import load_workbook
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
            row = _row(names, values)
            if row:
                yield row, f"{path}:{number}"
    except (BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not valid XLSX: {first_line(error)}", where=str(path)) from None


def _row(names: list[str], values: tuple[Any, ...]) -> dict[str, object]:
    """The cells of a row by column; a number or a date is text, as it would be in CSV."""
    cells = [None if value is None else str(value) for value in values]
    if not any(cells):
        return {}
    named = zip(names, cells, strict=False)
    return {name: "" if cell is None else cell for name, cell in named if name}
