"""Rows of CSV and TSV files, whose first row has the names of the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from string import ascii_uppercase
from typing import TextIO

from offbook.data.json_text import MAX_ROW_CHARS, Row, repeated
from offbook.data.packed import Packed, inside
from offbook.data.remarks import Remarks
from offbook.data.text import open_text
from offbook.errors import DataError, shorten

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?\s*', re.IGNORECASE)
SAMPLE_CHARS = 2**20  # of a file, in which its notation is looked for


def read_csv(path: Path | Packed, remarks: Remarks, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV file, with a DataError in place of each bad one.

    Args:
        path: the file.
        remarks: gets what is read in another way than the file's name says.
        encoding: of the file, where it is not UTF-8.
    """
    csv.field_size_limit(MAX_ROW_CHARS)  # a setting of the module; 131,072 unless it is set
    with open_text(path, encoding) as file:
        delimiter, skipped, spaced = _notation(file, path, remarks)
    with open_text(path, encoding) as file:  # once more: not all packed files can go back
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=spaced)
        header: list[str] | None = None
        where = f"{path}:1"
        try:
            while True:
                where = f"{path}:{skipped + reader.line_num + 1}"  # a quoted field may span lines
                values = next(reader, None)
                if values is None:
                    return
                if not values:
                    continue  # a blank line
                if header is None:
                    require_different(filter(None, values), where)
                    header = values
                elif len(values) == len(header):
                    yield row_of(header, values), where
                else:
                    what = f"{len(values)} columns, not {len(header)}"
                    fix = f"quote fields with {DELIMITERS[delimiter]}"
                    if len(values) < len(header):
                        fix = "write all columns, also those that are empty"
                    yield DataError(what, where=where, fix=fix), where
        except csv.Error as error:
            what = f"not valid CSV: {error}"
            fix = "a quote inside a quoted field is written twice; look for one that is not closed"
            raise DataError(what, where=where, fix=fix) from None


def require_different(names: Iterable[str], where: str) -> None:
    """Refuse two columns of one name.

    Raises:
        DataError: naming it.
    """
    if (name := repeated(names)) is not None:
        raise DataError(f'two columns are named "{shorten(name)}"', where=where, fix="rename one")


def row_of(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """A row of a table. A cell under no name has the key `column B`; an empty one is left out."""
    columns = enumerate(zip_longest(names, cells, fillvalue=""))
    return {name or f"column {_letters(k)}": cell for k, (name, cell) in columns if name or cell}


def _letters(column: int) -> str:
    """How a spreadsheet names a column, from 0: A to Z, AA and so on."""
    before, last = divmod(column, 26)
    return (_letters(before - 1) if before else "") + ascii_uppercase[last]


def _notation(file: TextIO, path: Path | Packed, remarks: Remarks) -> tuple[str, int, bool]:
    """How a file is written.

    Returns:
        What separates the fields: a line `sep=;`, which Excel writes and reads, says so, or a
        header that has no commas. How many lines come before the header. Whether spaces come
        before quoted fields, with which a quote would be a part of the text.
    """
    sample = file.read(SAMPLE_CHARS)
    lines = sample.splitlines()
    delimiter, skipped = "\t" if inside(path).suffix.lower() == ".tsv" else ",", 0
    if lines and (stated := SEPARATOR_LINE.fullmatch(lines[0])):
        remarks.add("its first line tells the separator", f"{path}:1")
        delimiter, skipped = stated[1], 1
    else:
        header = next((line for line in lines if line.strip()), "")
        present = [delimiter for delimiter in DELIMITERS if delimiter in header]
        if delimiter not in present and len(present) == 1:
            delimiter = present[0]
            remarks.add(f"the fields are separated by {DELIMITERS[delimiter]}", f"{path}:1")
    # Within a quoted field, a quote is written twice.
    if spaced := re.search(rf'{re.escape(delimiter)} +"(?!")', sample):
        line = sample.count("\n", 0, spaced.start()) + 1
        remarks.add("a space before a quoted field, which is left out", f"{path}:{line}")
    return delimiter, skipped, bool(spaced)
