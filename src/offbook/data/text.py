"""Text files as UTF-8 or, with a byte order mark, UTF-16 and UTF-32; anything else is named."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import TextIO

from offbook.data.packed import Packed, command_for, inside, open_bytes
from offbook.errors import DataError, shorten

# UTF-32 first: its mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CHUNK_BYTES = 2**16


def open_text(path: Path | Packed, encoding: str | None = None) -> TextIO:
    """Open a text file, with its line ends unchanged.

    Args:
        path: the file.
        encoding: of the file; by default, what its first bytes show.

    Raises:
        DataError: for UTF-16 without a byte order mark, with the command that converts it.
    """
    encoding = encoding or encoding_of(path)
    return io.TextIOWrapper(open_bytes(path), encoding, newline="")


def encoding_of(path: Path | Packed) -> str:
    """`utf-8-sig`, or the encoding of a byte order mark.

    Raises:
        DataError: see `open_text`.
    """
    with open_bytes(path) as file:
        start = file.read(4)
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding
    if len(start) == 4 and start.count(0) == 2 and (start[0] == start[2] == 0 or not start[1]):
        encoding = "UTF-16BE" if start[0] == 0 else "UTF-16LE"
        raise DataError(
            f"{encoding} text without a byte order mark",
            where=f"{path}:1",
            fix=f"convert it: {conversion(path, encoding)}",
        )
    return "utf-8-sig"


def undecodable(path: Path | Packed) -> DataError:
    """What is wrong with a file that cannot be decoded: the first place, and what it may be.

    A file that decodes as GB18030 is not read as such: text in other encodings does so as well.
    """
    encoding = encoding_of(path)
    line, column, found = _first_bad_bytes(path, encoding)
    where = f"{path}:{line}"
    if encoding != "utf-8-sig":
        what = f"not valid {encoding.upper()} at column {column}"
        return DataError(what, where=where, fix="save the file as UTF-8")
    what = f"not UTF-8 text at column {column} (bytes {found[:4].hex(' ')})"
    if _may_be_gb18030(path):
        text = found.decode("gb18030", errors="ignore")[:20].partition("\n")[0]
        fix = (
            f"as GB18030 it reads `{shorten(text)}`; if that is right, convert it: "
            f"{conversion(path, 'GB18030')}"
        )
        return DataError(what, where=where, fix=fix)
    fix = f"save the file as UTF-8, or convert it: {conversion(path, 'ITS-ENCODING')}"
    return DataError(what, where=where, fix=fix)


def conversion(path: Path | Packed, encoding: str) -> str:
    """The command that writes a copy of a file as UTF-8."""
    return command_for(path, f"iconv -f {encoding} -t UTF-8", f"-utf8{inside(path).suffix}")


def _first_bad_bytes(path: Path | Packed, encoding: str) -> tuple[int, int, bytes]:
    """Line and column of the first bytes that cannot be decoded, and the bytes from there on."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = column = 1
    with open_bytes(path) as file:
        while True:
            data = file.read(CHUNK_BYTES)
            state = decoder.getstate()
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                break
            line += text.count("\n")
            column = len(text) - text.rfind("\n") if "\n" in text else column + len(text)
            if not data:
                return line, column, b""  # another process has changed the file
        decoder.setstate(state)
        for position in range(len(data) + 1):
            held = decoder.getstate()[0]
            try:
                character = decoder.decode(
                    data[position : position + 1], final=position == len(data)
                )
            except UnicodeDecodeError:
                break
            if character:
                line, column = (line + 1, 1) if character == "\n" else (line, column + 1)
        return line, column, held + data[position : position + 100]


def _may_be_gb18030(path: Path | Packed) -> bool:
    """Whether a file decodes as GB18030, and is not UTF-8 with a few broken characters."""
    gb18030 = codecs.getincrementaldecoder("gb18030")()
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    broken = intact = 0
    with open_bytes(path) as file:
        while True:
            data = file.read(CHUNK_BYTES)
            try:
                gb18030.decode(data, final=not data)
            except UnicodeDecodeError:
                return False
            text = utf8.decode(data, final=not data)
            broken += text.count("\ufffd")
            intact += sum(char > "\x7f" for char in text) - text.count("\ufffd")
            if not data:
                return broken > intact
