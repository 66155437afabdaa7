"""Rows of JSON, JSONL, CSV, TSV, Parquet and XLSX files as plain values, each with its `file:line`.

Files are read as a stream, so memory does not grow with their size.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from offbook.data.delimited import read_csv, require_different
from offbook.data.json_text import JsonText, Row
from offbook.data.packed import (
    ARCHIVE,
    PACKERS,
    Packed,
    command_for,
    inside,
    is_hidden,
    members,
    refuse_misnamed,
    unpacking,
)
from offbook.data.remarks import Remarks
from offbook.data.sheet import read_sheet
from offbook.data.text import open_text, undecodable
from offbook.errors import DataError, first_few, first_line, shorten, stem, suggest
from offbook.files.hub import download
from offbook.files.untrusted import refuse_pointer
from offbook.settings.config import is_pattern, local_path
from offbook.settings.sections import SAMPLES

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xlsx")
BINARY = (".parquet", ".xlsx")


def resolve(source: str, commit: str | None = None) -> list[Path]:
    """The local files of a data set.

    That is a file, a folder, a pattern (`rows/*.jsonl`), a sample's name, or a hub id to download.

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
    if path and path.is_dir():
        return _in_folder(path, source)
    if is_pattern(source):
        return _matching(source)
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::(.+))?", source)
    if hub and (hub[2] or not file_type(Path(source))) and not path:
        return _from_hub(hub[1], hub[2], commit)
    parent = local_path(str(Path(source).parent))
    near = [str(Path(source).with_name(p.name)) for p in parent.glob("*")] if parent else []
    advice = suggest(source, [*near, *SAMPLES], stem)
    raise DataError(
        "no such file",
        where=source,
        fix=advice
        or f"give a file ending in {', '.join(SUFFIXES)}, or one of {', '.join(SAMPLES)}",
    )


def is_sample(path: Path) -> bool:
    """Whether a file is a sample of this package, whose rows have our keys."""
    return path.parent == Path(str(files("offbook") / "samples"))


def _in_folder(folder: Path, source: str) -> list[Path]:
    """The data files in a folder and its subfolders, in the order of their names."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if _is_data(path) and not is_hidden(path.relative_to(folder))
    ]
    if not found:
        fix = f"put files ending in {', '.join(SUFFIXES)} into it"
        raise DataError("no data file in this folder", where=source, fix=fix)
    return found


def _matching(pattern: str) -> list[Path]:
    """The data files that a pattern such as `rows/*.jsonl` names, in the order of their names."""
    names = glob.glob(os.path.expanduser(pattern), recursive=True)  # noqa: PTH111, PTH207
    found = [path for path in map(Path, sorted(names)) if _is_data(path)]
    if not found:
        fix = f"give a pattern of files ending in {', '.join(SUFFIXES)}"
        raise DataError("no data file matches", where=pattern, fix=fix)
    return found


def _is_data(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and bool(file_type(path))


def file_type(path: Path) -> str:
    """The suffix that tells how a file is read, such as `.jsonl` for `rows.jsonl.gz`; or empty."""
    name = path.name.lower()
    for packer in PACKERS:
        name = name.removesuffix(packer)
    return next((suffix for suffix in (*SUFFIXES, ARCHIVE) if name.endswith(suffix)), "")


def read_rows(path: Path, remarks: Remarks | None = None) -> Iterator[Row]:
    """Yield the rows of one file, with a DataError in place of each bad row.

    Args:
        path: a file of one of `SUFFIXES`, which may be packed.
        remarks: gets what is read in another way than the file's name says.

    Raises:
        DataError: when the rest of the file cannot be read.
    """
    if not file_type(path):
        fix = f"use {', '.join(SUFFIXES)}, or one of them as .gz, .zst or .zip"
        raise DataError(f'unknown file type "{path.suffix}"', where=str(path), fix=fix)
    with unpacking(path), _reading(path):
        refuse_pointer(path, DataError)
        refuse_misnamed(path)
        if path.suffix.lower() == ARCHIVE:
            every = list(members(path))
            files: list[Path | Packed] = [m for m in every if m.inside.suffix.lower() in SUFFIXES]
            if not files:
                fix = f"put files ending in {', '.join(SUFFIXES)} into it"
                raise DataError("no data file in this archive", where=str(path), fix=fix)
            others = [member.inside.name for member in every if member not in files]
            if others and remarks:
                what = f"{len(others)} of its files end in something else, and are not read: "
                remarks.add(what + first_few(others, 3), str(path))
        else:
            files = [Packed(path) if path.suffix.lower() in PACKERS else path]
    for file in files:
        with unpacking(file), _reading(file):
            yield from _rows_of(file, remarks or Remarks())


def _rows_of(file: Path | Packed, remarks: Remarks) -> Iterator[Row]:
    suffix = inside(file).suffix.lower()
    if suffix in BINARY:
        if isinstance(file, Packed):
            raise DataError(f"{suffix} is packed already", where=str(file), fix="unpack it")
        return _read_parquet(file) if suffix == ".parquet" else read_sheet(file, remarks)
    readers = {".json": _read_json, ".csv": read_csv, ".tsv": read_csv}
    return readers.get(suffix, _read_jsonl)(file, remarks)


@contextmanager
def _reading(path: Path | Packed) -> Iterator[None]:
    """Raise what is wrong with the bytes of a file as a DataError."""
    try:
        yield
    except UnicodeError:
        raise undecodable(path) from None
    except gzip.BadGzipFile:
        raise  # an OSError for `unpacking`
    except OSError as error:
        what = f"cannot be read ({error.strerror or first_line(error)})"
        raise DataError(what, where=str(path)) from None


def _from_hub(repo: str, name: str | None, commit: str | None) -> list[Path]:
    every = [f"*{suffix}{packer}" for suffix in SUFFIXES for packer in ("", *PACKERS, ARCHIVE)]
    patterns = [name] if name else every
    folder = download(repo, patterns, kind="dataset", error=DataError, revision=commit)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if name:
        names = [name] if name in names else []
    else:
        names = [n for n in names if file_type(Path(n)) and not is_hidden(Path(n))]
        names = [n for n in names if "train" in n.lower()] or names
    if not names or len({Path(n).parent for n in names}) > 1:
        raise DataError(
            f"cannot tell which files to train on: {first_few(names, 10) or 'none found'}",
            where=repo,
            fix=f"name one, as in {repo}:{names[0] if names else 'rows.json'}",
        )
    return [folder / n for n in names]


def _read_jsonl(path: Path | Packed, remarks: Remarks) -> Iterator[Row]:
    with open_text(path) as file:
        text = JsonText(file, path, remarks)
        if text.peek() == "[" and text.is_array_of_objects():
            remarks.add("one array of rows, not a row on each line", text.where)
            yield from text.array()
        else:
            yield from text.values()


def _read_json(path: Path | Packed, remarks: Remarks) -> Iterator[Row]:
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


def _objects(text: JsonText, path: Path | Packed, remarks: Remarks) -> Iterator[Row]:
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
            program = f"jq -c {shlex.quote(f'.[{json.dumps(lists[0])}][]')}"
            raise DataError(
                f"one JSON object, whose rows are under {names}",
                where=where,
                fix=f"take them out: {command_for(path, program, '-rows.jsonl')}",
            )
    remarks.add("objects one after another, not an array of rows", where)
    yield first, where
    if second is not None:
        yield second
    yield from rows


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names, number = file.schema_arrow.names, 0
            require_different(names, str(path))
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
