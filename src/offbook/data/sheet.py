"""Rows of an .xlsx file: its first sheet that has any, whose first row names the columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from offbook.data.delimited import require_different, row_of
from offbook.data.json_text import Row
from offbook.data.remarks import Remarks
from offbook.errors import ConfigError, DataError, first_few, first_line, shorten

if TYPE_CHECKING:
    from openpyxl.worksheet._read_only import ReadOnlyWorksheet


def read_sheet(path: Path, remarks: Remarks) -> Iterator[Row]:
    """Yield the rows; empty ones are none.

    A number or a date is text, as it would be in CSV. A cell without a heading has the key
    `column B`.

    Args:
        path: the file.
        remarks: gets the names of sheets that are not read.

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
        filled = [sheet for sheet in book.worksheets if next(_rows(sheet), None)]
        with_rows = [sheet for sheet in filled if len(list(islice(_rows(sheet), 2))) == 2]
        for sheet in with_rows[:1]:
            others = [f'"{shorten(other.title)}"' for other in filled if other is not sheet]
            if others:
                own, names = shorten(sheet.title), first_few(others, 3)
                remarks.add(f'only the sheet "{own}" is read, not {names}', str(path))
            table = _rows(sheet)
            first, headings = next(table)
            require_different(filter(None, headings), f"{path}:{first}")
            for number, cells in table:
                yield row_of(headings, cells), f"{path}:{number}"
    except DataError:
        raise
    except (BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"not valid XLSX: {first_line(error)}", where=str(path)) from None


def _rows(sheet: ReadOnlyWorksheet) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each row that is not empty."""
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = ["" if value is None else str(value) for value in values]
        if any(cells):
            yield number, cells
