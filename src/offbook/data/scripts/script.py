"""A script's text: its encoding, its numbered lines, and what is said in it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TextIO

from offbook.data.remarks import Remarks
from offbook.data.text import CHUNK_BYTES, MARKS, undecodable
from offbook.errors import DataError, first_line

HEAD_LINES = 2000  # that tell what a file is
MAX_LINE_CHARS = 2**20  # a longer line is no script
SURE_BYTES = 300  # that are not ASCII, from which the encoding is known
# Chinese, Japanese and Korean: the first two have no spaces between words.
WIDE = "\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef"
WIDE_CHAR = re.compile(f"[{WIDE}]")
WESTERN = frozenset("ÄÖÜäöüßÉÈÊËéèêëÀÂàâÇçÎÏîïÔÙÛôùûÑñÁÍÓÚáíóúÅØÆåøæœŒãõ“”‘’„«»–—…•°§©®¡¿\xa0€´")


class NoScriptError(DataError):
    """A file in which nobody speaks, such as notes in a folder of scripts."""


@dataclass(frozen=True, slots=True)
class Line:
    """Something that is said.

    Attributes:
        speaker: who says it; empty where the script does not tell.
        text: what is said.
        where: `file:line`, where it begins.
        scene: the same number for all lines between two cuts.
    """

    speaker: str
    text: str
    where: str
    scene: int = 0


@dataclass(slots=True)
class Speech:
    """A line whose parts are still being read.

    Attributes:
        speaker, where, scene: of the line.
        parts: of its text; not joined one by one, whose time would grow with the square.
    """

    speaker: str
    where: str
    scene: int = 0
    parts: list[str] = field(default_factory=list)

    def line(self, between: str = " ") -> Line:
        """The line, with `between` its parts, where those are not Chinese."""
        return Line(self.speaker, joined(self.parts, between), self.where, self.scene)


class Script:
    """A text file of any encoding, which is detected.

    Attributes:
        path: of the file.
        remarks: gets what is left out, and the encoding where it is not UTF-8.
        encoding: as Python names it.
        unsure: whether the text is too short to be sure of the encoding.
    """

    def __init__(self, path: Path, remarks: Remarks) -> None:
        self.path, self.remarks = path, remarks
        try:
            self.encoding, self.unsure = _encoding(path)
        except OSError as error:
            what = f"cannot be read ({error.strerror or first_line(error)})"
            raise DataError(what, where=str(path)) from None

    def open(self) -> TextIO:
        """The text, with every line end as a newline."""
        return self.path.open(encoding=self.encoding)

    def numbered(self) -> Iterator[tuple[int, str]]:
        """The lines, counted from 1, without their ends.

        Raises:
            DataError: where the file cannot be decoded, or has lines of megabytes.
        """
        try:
            with self.open() as file:
                number = 0
                while text := file.readline(MAX_LINE_CHARS):
                    number += 1
                    if len(text) == MAX_LINE_CHARS:
                        raise DataError(
                            f"a line of more than {MAX_LINE_CHARS:,} characters",
                            where=self.where(number),
                            fix="check that this is a script; break the line where others speak",
                        )
                    yield number, text.rstrip("\n").replace("\0", "").replace("\ufeff", "")
        except UnicodeError:
            raise undecodable(self.path) from None
        except OSError as error:
            what = f"cannot be read ({error.strerror or first_line(error)})"
            raise DataError(what, where=str(self.path)) from None

    def head(self) -> list[str]:
        """The first lines, which tell what a file is."""
        return [text for _, text in islice(self.numbered(), HEAD_LINES)]

    def where(self, number: int) -> str:
        """`script.txt:12`"""
        return f"{self.path}:{number}"


def joined(parts: Sequence[str], between: str = " ") -> str:
    """Parts of a text as one; Chinese and Japanese have no spaces between them."""
    parts = [part for part in parts if part]
    if between != " ":
        return between.join(parts)
    whole = list(parts[:1])
    for first, second in pairwise(parts):
        is_wide = WIDE_CHAR.match(first[-1]) and WIDE_CHAR.match(second[0])
        whole += [second] if is_wide else [" ", second]
    return "".join(whole)


def _encoding(path: Path) -> tuple[str, bool]:
    """The encoding of a byte order mark, or the one that the bytes have most likely.

    Also whether there are too few bytes to be sure of it.
    """
    from charset_normalizer import from_bytes

    with path.open("rb") as file:
        start = file.read(CHUNK_BYTES * 4)
        ends = not file.read(1)
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding, False
    zeros = start[: 2**12].count(0)
    if zeros > len(start[: 2**12]) // 5:
        return "utf-16-le" if start[1:2] == b"\0" else "utf-16-be", False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start, final=ends)
        return "utf-8-sig", False
    except UnicodeDecodeError:
        # Whole lines: the last bytes may be a part of a character, which no encoding has.
        last = len(start) if ends else start.rfind(b"\n") + 1 or len(start)
    start = start[:last]
    unsure = sum(byte >= 0x80 for byte in start) < SURE_BYTES
    if _is_simplified_chinese(start):
        return "gb18030", unsure
    western = start.decode("cp1252", errors="replace")
    if all(char < "\x80" or char in WESTERN for char in western):
        return "cp1252", unsure
    found = from_bytes(start).best()
    if found is None:
        return "utf-8-sig", False  # whose error names the place
    return {"gb2312": "gb18030", "gbk": "gb18030"}.get(found.encoding, found.encoding), unsure


def _is_simplified_chinese(data: bytes) -> bool:
    """Whether nearly all characters are common ones and punctuation of GB2312.

    Statistics need more than a few lines to find that. Korean has the same bytes, but only those of
    the first half of the common characters.
    """
    try:
        codes = [c.encode("gb2312", "replace") for c in data.decode("gb18030") if c > "\x7f"]
    except UnicodeDecodeError:
        return False
    common = sum(b"\xb0" <= code < b"\xd8" for code in codes)
    marks = sum(b"\xa1" <= code < b"\xa4" for code in codes)
    late = sum(b"\xc9" <= code < b"\xd8" for code in codes)
    return common + marks >= 0.9 * len(codes) and late > 0.05 * common
