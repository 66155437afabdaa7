"""The messages of a JSON export, one after another with their lines, wherever they are in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from offbook.data.json_text import JsonText
from offbook.data.scripts.script import NoScriptError, Script
from offbook.data.text import undecodable
from offbook.errors import DataError

MAX_DEPTH = 50


@dataclass
class Message:
    """An element of a list of messages.

    Attributes:
        values: of it.
        where: `file:line` where it begins.
        chat: the number of the list in the file.
    """

    values: Mapping[str, Any]
    where: str
    chat: int


def messages(script: Script) -> Iterator[Message]:
    """Yield the objects of a list, or of each list that is called `messages`.

    Raises:
        DataError: where the file is no JSON, or has no such list.
    """
    try:
        with script.open() as file:
            text = JsonText(file, script.path, script.remarks)
            walker = _Walker(text)
            if text.peek() == "[":
                yield from walker.elements()
            elif text.peek() == "{":
                yield from walker.inside(0)
            if not walker.chats:
                fix = "give the file that the chat program's export has written"
                raise NoScriptError("no list of messages", where=str(script.path), fix=fix)
            if text.peek():
                raise DataError("text after the end of the JSON", where=text.where)
    except UnicodeError:
        raise undecodable(script.path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(script.path)) from None


class _Walker:
    """Goes through JSON without holding more of it than one message."""

    def __init__(self, text: JsonText) -> None:
        self._text = text
        self.chats = 0

    def elements(self) -> Iterator[Message]:
        """The objects of the list that begins here; other elements are nothing said."""
        self.chats += 1
        for value, where in self._text.elements():
            if isinstance(value, dict):
                yield Message(value, where, self.chats)

    def inside(self, depth: int) -> Iterator[Message]:
        """The messages in the object that begins here."""
        for key in self._text.members():
            begins = self._text.peek()
            if begins == "[" and key == "messages":
                yield from self.elements()
            elif begins == "[" and key in ("list", "chats"):
                yield from self._chats(depth)
            elif begins == "{" and key in ("chats", "left_chats"):
                yield from self._deeper(depth)
            else:
                self._text.decoded()

    def _chats(self, depth: int) -> Iterator[Message]:
        for _ in self._text.places():
            if self._text.peek() == "{":
                yield from self._deeper(depth)
            else:
                self._text.decoded()

    def _deeper(self, depth: int) -> Iterator[Message]:
        if depth == MAX_DEPTH:
            raise DataError("nested too deeply", where=self._text.where)
        yield from self.inside(depth + 1)
