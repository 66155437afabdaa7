"""Rows of JSON, JSONL, CSV and Parquet files as plain values, each with its `file:line`.

Files are read as a stream, so memory does not grow with their size.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TextIO

from offbook.config import SAMPLE_ROLES, local_path
from offbook.errors import DataError, first_few, first_line, shorten, suggest
from offbook.files.hub import download
from offbook.files.untrusted import refuse_pointer

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
MAX_ROW_CHARS = 64 * 2**20  # a longer "row" is a broken file, not a line that somebody says
CHUNK_CHARS = 2**20

Row = tuple[object, str]  # the decoded value, or a DataError; and the file:line where it begins


def resolve(source: str) -> list[Path]:
    """The local files of a data set: a path, a sample's name, or a hub id to download.

    Raises:
        DataError: when there is no such data.
    """
    if source in SAMPLE_ROLES:
        with as_file(files("offbook") / "samples" / SAMPLE_ROLES[source]) as sample:
            return [sample]
    path = local_path(source)
    if path and path.is_file():
        return [path]
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::(.+))?", source)
    if hub and (hub[2] or not source.lower().endswith(SUFFIXES)) and not path:
        return _from_hub(hub[1], hub[2])
    parent = local_path(str(Path(source).parent))
    near = [p.name for p in parent.glob("*")] if parent else []
    advice = suggest(Path(source).name, [*near, *SAMPLE_ROLES])
    raise DataError(
        "this is a folder, not a file" if path and path.is_dir() else "no such file",
        where=source,
        fix=advice
        or f"give a file ending in {', '.join(SUFFIXES)}, or one of {', '.join(SAMPLE_ROLES)}",
    )


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of one file, with a DataError in place of each bad row.

    Raises:
        DataError: when the rest of the file cannot be read.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f'unknown file type "{path.suffix}"', where=str(path), fix=f"use {', '.join(SUFFIXES)}"
        )
    try:
        refuse_pointer(path, DataError)
        yield from readers.get(suffix, _read_jsonl)(path)
    except UnicodeDecodeError as error:
        what, where = f"not UTF-8 text ({error.reason})", _undecodable_line(path)
        raise DataError(what, where=where, fix="save the file as UTF-8") from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or _reason(error)})"
        raise DataError(what, where=str(path)) from None


def _undecodable_line(path: Path) -> str:
    """The `file:line` of the first bytes that are not UTF-8, which Python's error does not tell."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{path}:{number}"
    return str(path)


def _from_hub(repo: str, name: str | None) -> list[Path]:
    patterns = [name] if name else [f"*{suffix}" for suffix in SUFFIXES]
    folder = download(repo, patterns, kind="dataset", error=DataError)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if name:
        names = [name] if name in names else []
    else:
        names = [n for n in names if n.lower().endswith(SUFFIXES)]
        names = [n for n in names if "train" in n.lower()] or names
    if not names or len({Path(n).parent for n in names}) > 1:
        raise DataError(
            f"cannot tell which files to train on: {first_few(names, 10) or 'none found'}",
            where=repo,
            fix=f"name one, as in {repo}:{names[0] if names else 'rows.json'}",
        )
    return [folder / n for n in names]


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW_CHARS), ""), 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            if len(line) == MAX_ROW_CHARS:
                what = f"a line of more than {MAX_ROW_CHARS:,} characters"
                raise DataError(what, where=where, fix="put one row on each line")
            try:
                yield _DECODER.decode(line.strip()), where
            except _BAD_JSON as error:
                yield DataError(f"not valid JSON: {_reason(error)}", where=where), where


def _read_json(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        stream = _JsonArray(file, path)
        first = stream.peek()
        if first == "{":
            raise DataError(
                "one JSON object, not an array of rows",
                where=str(path),
                fix="put the rows in [ ], or name the file .jsonl if it has one object a line",
            )
        if first != "[":
            what = "not a JSON array of rows" if first else "no rows: the file is empty"
            raise DataError(what, where=f"{path}:{stream.line}", fix="the file should begin with [")
        yield from stream.elements()


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        where = f"{path}:1"
        try:
            while True:
                where = f"{path}:{reader.line_num + 1}"  # a quoted field may span lines
                values = next(reader, None)
                if values is None:
                    return
                if not values:
                    continue  # a blank line
                if header is None:
                    header = _header(values, where)
                elif len(values) == len(header):
                    yield dict(zip(header, values, strict=True)), where
                else:
                    what = f"{len(values)} columns, not {len(header)}"
                    yield DataError(what, where=where, fix="quote fields with commas"), where
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", where=where) from None


def _header(names: list[str], where: str) -> list[str]:
    repeated = _repeated(names)
    if repeated is not None:
        raise DataError(
            f'two columns are named "{shorten(repeated)}"', where=where, fix="rename one"
        )
    return names


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names, number = _header(file.schema_arrow.names, str(path)), 0
            for batch in file.iter_batches(batch_size=1024):
                # Dates become integers: Python cannot represent all of Arrow's dates.
                columns = [
                    column.view(f"int{column.type.bit_width}")
                    if pa.types.is_temporal(column.type)
                    else column
                    for column in batch.columns
                ]
                for row in pa.RecordBatch.from_arrays(columns, names).to_pylist():
                    number += 1
                    yield row, f"{path}:{number}"
    except DataError:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"not valid Parquet: {_reason(error)}", where=str(path)) from None


class _JsonArray:
    """Decodes the elements of a JSON array in a text file, chunk by chunk."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._position, self._ended = "", 0, False
        self.line = 1

    def elements(self) -> Iterator[Row]:
        self._advance(1)  # the opening bracket, which the caller has seen
        after = "]" if self.peek() == "]" else ","
        while after == ",":
            self.peek()
            line = self.line
            yield self._element(), f"{self._path}:{line}"
            after = self.peek()
            if after not in (",", "]"):
                raise self._error(
                    "no comma between rows" if after else "the file ends inside the array"
                )
            if after == ",":
                self._advance(1)
        self._advance(1)
        if self.peek():
            raise self._error("text after the end of the array")

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._advance(len(space[0]) if space else 0)
            if self._position < len(self._text) or not self._fill():
                return self._text[self._position : self._position + 1]

    def _element(self) -> object:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except _BAD_JSON as error:
                # The chunk may end inside the row, so read more before reporting an error.
                before = max(getattr(error, "pos", self._position) - self._position, 0)
                if len(self._text) - self._position < MAX_ROW_CHARS and self._fill():
                    continue
                self._advance(before)
                raise self._error(f"not valid JSON: {_reason(error)}") from None
            if end == len(self._text) and self._fill():
                continue  # a number at the end of a chunk may continue in the next
            self._advance(end - self._position)
            return value

    def _advance(self, count: int) -> None:
        self.line += self._text.count("\n", self._position, self._position + count)
        self._position += count

    def _fill(self) -> bool:
        # At least double the text, so that a long row is decoded a few times, not for each chunk.
        held = self._text[self._position :]
        more = "" if self._ended else self._file.read(max(CHUNK_CHARS, len(held)))
        self._ended = not more
        self._text, self._position = held + more, 0
        return bool(more)

    def _error(self, what: str) -> DataError:
        return DataError(what, where=f"{self._path}:{self.line}", fix="correct the JSON array")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        repeated = _repeated(name for name, _ in pairs) or ""
        raise ValueError(f'the key "{shorten(repeated)}" appears twice in one object')
    return row


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that appears a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_BAD_JSON = (ValueError, RecursionError)
_SPACE = re.compile(r"[ \t\r\n]+")


def _reason(error: BaseException) -> str:
    """The message, without json's own line number, which counts from the chunk."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return first_line(error)
