"""Discord's chats, as DiscordChatExporter writes them as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from offbook.data.scripts.days import Days
from offbook.data.scripts.json_chats import messages
from offbook.data.scripts.script import Line, Script

SAID = ("Default", "Reply", "0", "19")
EMPTY = "messages without text (pictures, calls, who joined), left out"
EMOJI = re.compile(r"<a?(:\w{1,40}:)\d{5,25}>")


def recognizes_message(values: Mapping[str, Any]) -> bool:
    """Whether this is a message."""
    return isinstance(values.get("author"), dict) and "content" in values


def read(script: Script) -> Iterator[Line]:
    """Yield the messages."""
    days = Days()
    for message in messages(script):
        values, author = message.values, message.values.get("author")
        scene = days.of_iso(str(values.get("timestamp")))
        text = EMOJI.sub(r"\1", str(values.get("content") or "")).strip()
        if not text or not isinstance(author, dict) or str(values.get("type", "0")) not in SAID:
            script.remarks.add(EMPTY, message.where)
            continue
        name = author.get("nickname") or author.get("global_name") or author.get("name")
        yield Line(str(name or author.get("username") or "").strip(), text, message.where, scene)
