"""Rows of JSON, JSONL, CSV, TSV and Parquet files as plain values, each with its `file:line`.

Files are read as a stream, so memory does not grow with their size.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import TextIO

from offbook.config import SAMPLES, local_path
from offbook.data.json_text import MAX_ROW_CHARS, JsonText, Row, repeated
from offbook.data.remarks import Remarks
from offbook.data.text import open_text, undecodable
from offbook.errors import DataError, first_few, first_line, shorten, suggest
from offbook.files.hub import download
from offbook.files.untrusted import refuse_pointer

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?\s*', re.IGNORECASE)


def resolve(source: str, commit: str | None = None) -> list[Path]:
    """The local files of a data set: a path, a sample's name, or a hub id to download.

    Args:
        source: which data set.
        commit: of one on the hub; by default, the newest.

    Raises:
        DataError: when there is no such data.
    """
    if source in SAMPLES:
        with as_file(files("offbook") / "samples" / SAMPLES[source]) as sample:
            return [sample]
    path = local_path(source)
    if path and path.is_file():
        return [path]
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::(.+))?", source)
    if hub and (hub[2] or not source.lower().endswith(SUFFIXES)) and not path:
        return _from_hub(hub[1], hub[2], commit)
    parent = local_path(str(Path(source).parent))
    near = [p.name for p in parent.glob("*")] if parent else []
    advice = suggest(Path(source).name, [*near, *SAMPLES])
    if path and path.is_dir():
        raise _folder(path, source)
    raise DataError(
        "no such file",
        where=source,
        fix=advice
        or f"give a file ending in {', '.join(SUFFIXES)}, or one of {', '.join(SAMPLES)}",
    )


def _folder(path: Path, source: str) -> DataError:
    """The error for a folder in place of a file, with what to do about the files in it."""
    names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    fix = f"give a file ending in {', '.join(SUFFIXES)}"
    if names:
        fix = f"name one of its files: {first_few(names, 3)}"
        parts = shlex.quote(f"{str(path).rstrip('/')}/") + "*.jsonl"
        if all(name.lower().endswith(".jsonl") for name in names) and len(names) > 1:
            joined = path.with_name(f"{path.name}.jsonl")
            fix += f"; or join them: cat {parts} > {shlex.quote(str(joined))}"
    return DataError("this is a folder, not a file", where=source, fix=fix)


def read_rows(path: Path, remarks: Remarks | None = None) -> Iterator[Row]:
    """Yield the rows of one file, with a DataError in place of each bad row.

    Args:
        path: a file with one of `SUFFIXES`.
        remarks: gets what is read in another way than the file's name says.

    Raises:
        DataError: when the rest of the file cannot be read.
    """
    readers = {
        ".json": _read_json,
        ".csv": read_csv,
        ".tsv": read_csv,
        ".parquet": _read_parquet,
    }
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        unpack = suffix == ".gz" and f"unpack it: gunzip -k {shlex.quote(str(path))}"
        fix = unpack or f"use {', '.join(SUFFIXES)}"
        raise DataError(f'unknown file type "{path.suffix}"', where=str(path), fix=fix)
    try:
        refuse_pointer(path, DataError)
        yield from readers.get(suffix, _read_jsonl)(path, remarks or Remarks())
    except UnicodeError:
        raise undecodable(path) from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or first_line(error)})"
        raise DataError(what, where=str(path)) from None


def _from_hub(repo: str, name: str | None, commit: str | None) -> list[Path]:
    patterns = [name] if name else [f"*{suffix}" for suffix in SUFFIXES]
    folder = download(repo, patterns, kind="dataset", error=DataError, revision=commit)
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


def _read_jsonl(path: Path, remarks: Remarks) -> Iterator[Row]:
    with open_text(path) as file:
        text = JsonText(file, path, remarks)
        if text.peek() == "[" and text.is_array_of_objects():
            remarks.add("one array of rows, not a row on each line", text.where)
            yield from text.array()
        else:
            yield from text.values()


def _read_json(path: Path, remarks: Remarks) -> Iterator[Row]:
    with open_text(path) as file:
        text = JsonText(file, path, remarks)
        first = text.peek()
        if first == "[":
            yield from text.array()
        elif first == "{":
            yield from _objects(text, path, remarks)
        else:
            what = "not a JSON array of rows" if first else "no rows: the file is empty"
            raise DataError(what, where=text.where, fix="the file should begin with [")


def _objects(text: JsonText, path: Path, remarks: Remarks) -> Iterator[Row]:
    """The objects of a file that should be an array: rows, or one object with all rows in it."""
    rows = text.values()
    first, where = next(rows)
    second = next(rows, None)
    if second is None and isinstance(first, dict):
        columns = list(first.values())
        if columns and all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns):
            remarks.add("an object of columns; each index is a row", where)
            for index in columns[0]:
                yield {name: column[index] for name, column in first.items()}, where
            return
        lists = [name for name, rows in first.items() if rows and _is_objects(rows)]
        if lists and not {"messages", "conversations", "instruction"} & first.keys():
            names = first_few([f'"{shorten(name)}"' for name in lists], 3)
            raise DataError(
                f"one JSON object, whose rows are under {names}",
                where=where,
                fix=f"take them out: {_extraction(path, lists[0])}",
            )
    remarks.add("objects one after another, not an array of rows", where)
    yield first, where
    if second is not None:
        yield second
    yield from rows


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _extraction(path: Path, key: str) -> str:
    """The command that writes the rows under a key to a file of their own."""
    copy = path.with_name(f"{path.stem}-rows.jsonl")
    return (
        f"jq -c {shlex.quote(f'.[{json.dumps(key)}][]')} {shlex.quote(str(path))} "
        f"> {shlex.quote(str(copy))}"
    )


def read_csv(path: Path, remarks: Remarks, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV file, with a DataError in place of each bad one.

    Args:
        path: the file.
        remarks: gets what is read in another way than the file's name says.
        encoding: of the file, where it is not UTF-8.
    """
    csv.field_size_limit(MAX_ROW_CHARS)  # a setting of the module; 131,072 unless it is set
    with path.open(encoding=encoding, newline="") if encoding else open_text(path) as file:
        delimiter, skipped = _delimiter(file, path, remarks)
        reader = csv.reader(file, strict=True, delimiter=delimiter)
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
                    header = _header(values, where)
                elif len(values) == len(header):
                    yield dict(zip(header, values, strict=True)), where
                else:
                    what = f"{len(values)} columns, not {len(header)}"
                    name = DELIMITERS.get(delimiter, delimiter)
                    yield DataError(what, where=where, fix=f"quote fields with {name}"), where
        except csv.Error as error:
            what = f"not valid CSV: {error}"
            fix = "a quote inside a quoted field is written twice; look for one that is not closed"
            raise DataError(what, where=where, fix=fix) from None


def _delimiter(file: TextIO, path: Path, remarks: Remarks) -> tuple[str, int]:
    """What separates the fields of a file, and how many lines come before its header.

    A line `sep=;`, which Excel writes and reads, says so, or a header that commas do not separate.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    stated = SEPARATOR_LINE.fullmatch(file.readline(MAX_ROW_CHARS))
    if stated:
        remarks.add("its first line tells the separator", f"{path}:1")
        return stated[1], 1
    file.seek(0)
    header = next(
        (line for line in iter(lambda: file.readline(MAX_ROW_CHARS), "") if line.strip()), ""
    )
    file.seek(0)
    present = [delimiter for delimiter in DELIMITERS if delimiter in header]
    if usual in present or len(present) != 1:
        return usual, 0
    remarks.add(f"the fields are separated by {DELIMITERS[present[0]]}", f"{path}:1")
    return present[0], 0


def _header(names: list[str], where: str) -> list[str]:
    name = repeated(names)
    if name is not None:
        raise DataError(f'two columns are named "{shorten(name)}"', where=where, fix="rename one")
    return names


def _read_parquet(path: Path, remarks: Remarks) -> Iterator[Row]:
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
        raise DataError(f"not valid Parquet: {first_line(error)}", where=str(path)) from None
