"""Telegram Desktop's exports: `result.json`, of one chat or of all, and `messages.html`.

Messages that were forwarded are somebody else's words, and left out, as are those without text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from offbook.data.scripts.days import Days
from offbook.data.scripts.json_chats import messages
from offbook.data.scripts.script import MAX_LINE_CHARS, Line, Script
from offbook.data.text import undecodable
from offbook.errors import DataError

FORWARDED = "forwarded messages, left out"
EMPTY = "messages without text (photos, stickers, calls), left out"
CHUNK_CHARS = 2**16
# 24.12.2023 18:05:12 UTC+01:00
TIME = re.compile(r"\s*(\S{8,10}) (\d{1,2}):(\d{2})")


def recognizes_message(values: Mapping[str, Any]) -> bool:
    """Whether this is a message of `result.json`."""
    return values.get("type") in ("message", "service") and "date" in values and "id" in values


def recognizes_html(head: Sequence[str]) -> bool:
    """Whether this is a page of a chat."""
    start = "\n".join(head)[: 2**16].lower()
    return "<html" in start and ('class="message ' in start or "exported data" in start)


def read_json(script: Script) -> Iterator[Line]:
    """Yield the messages."""
    days, chat = Days(), 0
    for message in messages(script):
        values = message.values
        if message.chat != chat:
            days.cut()
            chat = message.chat
        scene = days.of_iso(str(values.get("date")))
        if values.get("type") != "message":
            continue
        if values.get("forwarded_from"):
            script.remarks.add(FORWARDED, message.where)
        elif text := _text(values.get("text")).strip():
            # A deleted account has no name.
            name = values.get("from") or values.get("from_id") or ""
            yield Line(str(name).strip(), text, message.where, scene)
        else:
            script.remarks.add(EMPTY, message.where)


def _text(value: object) -> str:
    """Text is written in parts where some of it is a link, bold, or a mention."""
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, dict):
        return _text(value.get("text"))
    return value if isinstance(value, str) else ""


def read_html(script: Script) -> Iterator[Line]:
    """Yield the messages."""
    page = _Page(script)
    try:
        with script.open() as file:
            while text := file.read(CHUNK_CHARS):
                page.feed(text)
                yield from page.done()
                if len(page.rawdata) > MAX_LINE_CHARS:
                    where = script.where(page.getpos()[0])
                    raise DataError("a tag that is not closed", where=where)
            page.close()
            yield from page.done()
    except UnicodeError:
        raise undecodable(script.path) from None
    except (OSError, AssertionError) as error:  # html.parser asserts, for broken declarations
        raise DataError(f"cannot be read ({error})", where=str(script.path)) from None


class _Page(HTMLParser):
    """The divisions of a page: `message`, and in it `from_name`, `date` and `text`."""

    def __init__(self, script: Script) -> None:
        super().__init__(convert_charrefs=True)
        self._script = script
        self._days = Days()
        self._open: list[str] = []  # the classes of the divisions that are open
        self._found: list[Line] = []
        self._name = self._speaker = self._text = self._where = ""
        self._scene, self._forwarded, self._begun = 0, False, False

    def done(self) -> list[Line]:
        """The messages that are complete since the last call."""
        found, self._found = self._found, []
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note which division begins."""
        if tag == "br" and "text" in self._kinds():
            self._text += "\n"
        if tag != "div":
            return
        values = {key: value or "" for key, value in attrs}
        classes = values.get("class", "")
        self._open.append(classes)
        kinds = classes.split()
        if "message" in kinds:
            self._finish()
            self._begun, self._where = "service" not in kinds, self._script.where(self.getpos()[0])
            self._forwarded = False
        elif "from_name" in kinds:
            self._name = ""
        elif "forwarded" in kinds and "body" in kinds:
            self._forwarded = True
        elif "date" in kinds and (time := TIME.match(values.get("title", ""))):
            minutes = int(time[2]) * 60 + int(time[3])
            self._scene = self._days.scene(time[1], minutes)

    def handle_endtag(self, tag: str) -> None:
        """Note which division ends."""
        if tag == "div" and self._open:
            classes = self._open.pop().split()
            if "from_name" in classes and not self._forwarded:
                self._speaker = self._name.strip()

    def handle_data(self, data: str) -> None:
        """Keep the names and texts."""
        kinds = self._kinds()
        if "from_name" in kinds:
            self._name += data
        elif "text" in kinds and not self._forwarded:
            self._text += data

    def close(self) -> None:
        """The last message is complete."""
        super().close()
        self._finish()

    def _kinds(self) -> list[str]:
        return self._open[-1].split() if self._open else []

    def _finish(self) -> None:
        text = self._text.strip()
        if self._begun and self._forwarded:
            self._script.remarks.add(FORWARDED, self._where)
        elif self._begun and text:
            self._found.append(Line(self._speaker, text, self._where, self._scene))
        elif self._begun:
            self._script.remarks.add(EMPTY, self._where)
        self._text, self._begun = "", False
