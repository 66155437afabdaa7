"""JSON values in a text file, decoded one after another as a stream, with their lines.

Reads what loses nothing and can mean one thing only (a comma after each row, several rows on a line
or one row on several, line breaks inside a text) and remarks on it; names everything else with its
line, its column and the text around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from offbook.data.packed import Packed
from offbook.data.remarks import Remarks
from offbook.errors import DataError, first_line, shorten

MAX_ROW_CHARS = 64 * 2**20  # a longer "row" is a broken file, not a line that somebody says
CHUNK_CHARS = 2**20
AROUND = 24  # characters before and after a fault that its error shows

# The decoded value, or a DataError; and the file:line where it begins, with its column where it is
# not the first on its line.
Row = tuple[object, str]

CONTROL = "Invalid control character"
LINE_BREAK = "a line break or control character inside a text, kept as it is; JSON has it as \\n"


class _FaultError(Exception):
    """A value that is not JSON: how many characters after its beginning, and why."""

    def __init__(self, offset: int | None, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


class JsonText:
    """The values of a JSON text, of which a part is held in memory."""

    def __init__(self, file: TextIO, path: Path | Packed, remarks: Remarks) -> None:
        self.path, self.remarks = path, remarks
        self._file = file
        self._text, self._position, self._ended = "", 0, False
        self.line, self._column = 1, 1
        self._row_line = 0  # that of the last row

    @property
    def where(self) -> str:
        """The `file:line` of the next character."""
        return f"{self.path}:{self.line}"

    def _place(self) -> str:
        """The place of the row that begins here; see `Row`."""
        column = f":{self._column}" if self.line == self._row_line else ""
        self._row_line = self.line
        return self.where + column

    def array(self) -> Iterator[Row]:
        """Yield the elements of the array that begins here, after which nothing comes.

        Raises:
            DataError: at the first fault; where the next row begins cannot be told.
        """
        yield from self.elements()
        if self.peek():
            raise self._error(
                _FaultError(0, "text after the end of the array"), "put all rows into it"
            )

    def elements(self) -> Iterator[Row]:
        """Yield the elements of the array that begins here.

        Raises:
            DataError: at the first fault.
        """
        for where in self.places():
            yield self.decoded("correct the JSON array"), where

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller reads the value of each.

        Raises:
            DataError: at the first fault.
        """
        for _ in self.places("}"):
            key = self.decoded()
            if not isinstance(key, str) or self.peek() != ":":
                raise self._error(_FaultError(0, "no key and colon"))
            self.advance(1)
            self.peek()
            yield key

    def places(self, closing: str = "]") -> Iterator[str]:
        """Yield the place of each element of the array, or object, that begins here; see `Row`.

        The caller reads each element.

        Raises:
            DataError: where a comma is missing, or the end.
        """
        self.advance(1)
        after = closing if self.peek() == closing else ","
        while after == ",":
            self.peek()
            yield self._place() if closing == "]" else self.where
            after = self.peek()
            if after not in (",", closing):
                what = "no comma between rows" if after else "the file ends inside the array"
                raise self._error(_FaultError(0, what), "correct the JSON array")
            if after == ",":
                self.advance(1)
        self.advance(1)

    def decoded(self, hint: str | None = None) -> object:
        """The value that begins here.

        Raises:
            DataError: where it is not JSON.
        """
        try:
            return self._value()
        except _FaultError as fault:
            raise self._error(fault, hint) from None

    def values(self) -> Iterator[Row]:
        """Yield values that follow each other, with a DataError in place of each bad one."""
        spread = False  # whether rows may have several lines
        while self.peek():
            where, line = self._place(), self.line
            try:
                value = self._value()
            except _FaultError as fault:
                found = self._where_it_ended(fault)
                yield self._error(found), where
                spread |= "\n" in self._ahead(found.offset or 0)
                self._skip(spread)
                continue
            if self.line > line:
                spread = True
                self.remarks.add("a row on several lines", where)
            yield value, where
            line, after = self.line, self.peek()
            if after == ",":
                self.remarks.add("a comma after a row, which is ignored", f"{self.path}:{line}")
                self.advance(1)
            elif after and self.line == line:
                if after == "{":
                    self.remarks.add("several rows on one line", where)
                    continue
                yield self._error(_FaultError(0, "text after a row")), self.where
                self._skip(spread)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self.advance(len(space[0]) if space else 0)
            if self._position < len(self._text) or not self._fill():
                return self._text[self._position : self._position + 1]

    def advance(self, count: int) -> None:
        """Leave `count` characters behind."""
        passed = self._text[self._position : self._position + count]
        self.line += passed.count("\n")
        self._column = _column(passed, self._column)
        self._position += count

    def is_array_of_objects(self) -> bool:
        """Whether the text begins with one array of rows, and not with a list on each line."""
        ahead = self._text[self._position :]
        first, _, rest = ahead.partition("\n")
        if not _ARRAY.match(ahead):
            return False
        try:
            _DECODER.decode(first.strip())
        except _BAD_JSON:
            return True
        return not rest.strip()

    def _value(self) -> object:
        while True:
            held = len(self._text) - self._position
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except _BAD_JSON as error:
                fault = self._fault(error)  # its offset, before more text moves the position
                if self._may_be_cut(fault) and held < MAX_ROW_CHARS and self._fill():
                    continue
                if fault.reason == CONTROL:
                    return self._value_with_line_breaks(fault)
                if held >= MAX_ROW_CHARS:
                    self._refuse_length()
                raise fault from None
            length = end - self._position  # `_fill` moves the position
            if end == len(self._text) and self._fill():
                continue  # a number at the end of a chunk may continue in the next
            if length > MAX_ROW_CHARS:
                self._refuse_length()
            self.advance(length)
            return value

    def _may_be_cut(self, fault: _FaultError) -> bool:
        """Whether the reason can be that the held text ends inside the value."""
        if fault.offset is None:
            return False
        # 16: the longest token, a literal or an escape, is shorter.
        at_end = self._position + fault.offset >= len(self._text) - 16
        return at_end or fault.reason.startswith("Unterminated string")

    def _value_with_line_breaks(self, fault: _FaultError) -> object:
        """The value whose texts have raw line breaks, which can be read in one way only."""
        if len(self._text) - self._position < CHUNK_CHARS:
            self._fill()
        try:
            value, end = _LENIENT.raw_decode(self._text, self._position)
        except _BAD_JSON:
            raise fault from None
        self.remarks.add(LINE_BREAK, self.where)
        self.advance(end - self._position)
        return value

    def _refuse_length(self) -> None:
        what = f"a row of more than {MAX_ROW_CHARS:,} characters"
        raise DataError(what, where=self.where, fix="put one row on each line")

    def _where_it_ended(self, fault: _FaultError) -> _FaultError:
        """The fault, or that of the lines before the next row where a row was cut off."""
        ahead = self._ahead((fault.offset or 0) + 2)
        cut = ahead.find("\n{")
        if cut < 0:
            return fault
        try:
            _DECODER.decode(ahead[:cut])
        except _BAD_JSON as error:
            return _FaultError(min(getattr(error, "pos", cut), cut), fault_reason(error))
        return fault

    def _skip(self, to_a_row: bool) -> None:
        """Go to the next line, or to the next one that begins with a row."""
        while True:
            end = self._text.find("\n", self._position)
            while end < 0:
                self.advance(len(self._text) - self._position)
                if not self._fill():
                    return
                end = self._text.find("\n", self._position)
            self.advance(end + 1 - self._position)
            if self._position == len(self._text):
                self._fill()
            if not to_a_row or self._text.startswith("{", self._position):
                return

    def _fill(self) -> bool:
        # At least double the text, so that a long row is decoded a few times, not for each chunk.
        held = self._text[self._position :]
        more = "" if self._ended else self._file.read(max(CHUNK_CHARS, len(held)))
        self._ended = not more
        self._text, self._position = held + more, 0
        return bool(more)

    def _ahead(self, count: int) -> str:
        return self._text[self._position : self._position + count]

    def _fault(self, error: BaseException) -> _FaultError:
        offset = None
        if isinstance(error, json.JSONDecodeError):
            offset = max(error.pos - self._position, 0)
        return _FaultError(offset, fault_reason(error))

    def _error(self, fault: _FaultError, fix: str | None = None) -> DataError:
        """The error for a fault in the value that begins here."""
        if fault.offset is None:
            advice = _advice(fault.reason, "", "") or fix
            return DataError(f"not valid JSON: {fault.reason}", where=self.where, fix=advice)
        passed = self._ahead(fault.offset)
        line, column = self.line + passed.count("\n"), _column(passed, self._column)
        at = self._position + fault.offset
        before = self._text[max(at - AROUND, 0) : at].rpartition("\n")[2].lstrip()
        after = self._text[at : at + AROUND].partition("\n")[0].rstrip()
        places = [f"after `{before}`"] * bool(before) + [f"before `{after}`"] * bool(after)
        place = f", {' and '.join(places)}" if places else ""
        what = f"not valid JSON: {fault.reason} at column {column}{place}"
        advice = _advice(fault.reason, before, after) or fix
        return DataError(what, where=f"{self.path}:{line}", fix=advice)


def fault_reason(error: BaseException) -> str:
    """The message, without json's own place, which counts from the chunk."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at")
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return first_line(error)


def repeated(names: Iterable[str]) -> str | None:
    """The first name that appears a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _advice(reason: str, before: str, after: str) -> str | None:
    if after.startswith(("'", "“", "”")):
        return "JSON's quotes are straight and double"
    if after.startswith(("//", "/*", "#")):
        return "remove it: JSON has no comments"
    if "appears twice" in reason:
        return "remove one of them"
    closes = after.startswith(("]", "}"))
    if closes and (before.rstrip().endswith(",") or (not before and reason == "Expecting value")):
        return f"remove the comma before the {after[0]}"
    if reason == CONTROL:
        return "close the text with a quote before it"
    if reason.endswith("is not JSON"):
        return "write null or a text in quotes"
    if reason.startswith("Illegal trailing comma"):
        return "remove that comma"
    return None


def _column(passed: str, column: int) -> int:
    """The column after `passed`, which begins at `column`."""
    return len(passed) - passed.rfind("\n") if "\n" in passed else column + len(passed)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        name = repeated(name for name, _ in pairs) or ""
        raise ValueError(f'the key "{shorten(name)}" appears twice in one object')
    return row


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, strict=False)
_BAD_JSON = (ValueError, RecursionError)
# Files that are joined have byte order marks inside; JSON text sequences have record separators.
_SPACE = re.compile("[ \t\r\n\ufeff\x1e]+")
_ARRAY = re.compile(r"\[\s*(?:[{\]]|$)")
