"""Rows of an .xlsx file: its first sheet, whose first row has the names of the columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from zipfile import BadZipFile

from offbook.data.json_text import Row, repeated
from offbook.errors import ConfigError, DataError, first_line, shorten


def read_sheet(path: Path) -> Iterator[Row]:
    """Yield the rows; empty ones are none.

    A number or a date is text, as it would be in CSV. A cell without a heading has the key
    `column B`.

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
        headings = [str(value or "") for value in first[1]] if first else []
        if (name := repeated(filter(None, headings))) is not None:
            what = f'two columns are named "{shorten(name)}"'
            raise DataError(what, where=f"{path}:1", fix="rename one")
        for number, values in table:
            cells = ["" if value is None else str(value) for value in values]
            if any(cells):
                columns = enumerate(zip_longest(headings, cells, fillvalue=""), 1)
                yield (
                    {
                        heading or f"column {get_column_letter(k)}": cell
                        for k, (heading, cell) in columns
                        if heading or cell
                    },
                    f"{path}:{number}",
                )
    except DataError:
        raise
    except (BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"not valid XLSX: {first_line(error)}", where=str(path)) from None
