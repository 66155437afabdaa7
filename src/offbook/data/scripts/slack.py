"""Slack's export: a folder for each channel, a JSON file for each day; `users.json` has the names.

A thread is a scene of its own: its replies stand between other messages in the file.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from html import unescape
from typing import Any

from offbook.data.scripts.days import Days
from offbook.data.scripts.json_chats import Message, messages
from offbook.data.scripts.script import Line, Script

SAID = (None, "", "thread_broadcast", "me_message", "bot_message", "file_share", "reply_broadcast")
EMPTY = "messages without text (files, who joined), left out"
OTHER_FILES = (
    "users.json",
    "channels.json",
    "groups.json",
    "dms.json",
    "mpims.json",
    "integration_logs.json",
)
LINK = re.compile(r"<([@#!]?)([^<>|]{1,2000})(?:\|([^<>]{0,2000}))?>")


def recognizes_message(values: Mapping[str, Any]) -> bool:
    """Whether this is a message."""
    return values.get("type") == "message" and isinstance(values.get("ts"), str)


def read(script: Script) -> Iterator[Line]:
    """Yield the messages, those of a thread together."""
    names, found = _names(script), list(messages(script))
    for message in found:
        profile = message.values.get("user_profile")
        if isinstance(profile, dict) and (name := _name(profile)):
            names.setdefault(str(message.values.get("user")), name)
    threads = {m.values["thread_ts"] for m in found if _is_reply(m)}
    days, last = Days(), ""
    for message in sorted(found, key=lambda one: (_root(one), _time(one))):
        values, root = message.values, message.values.get("thread_ts")
        thread = str(root) if root in threads else ""
        moment = datetime.datetime.fromtimestamp(_time(message), datetime.timezone.utc)
        if thread != last:
            days.cut()
            last = thread
        scene = days.of_iso(moment.isoformat())
        text = _text(str(values.get("text") or ""), names)
        if not text or values.get("subtype") not in SAID:
            script.remarks.add(EMPTY, message.where)
            continue
        user = str(values.get("user") or values.get("username") or values.get("bot_id") or "")
        yield Line(names.get(user, user).strip(), text, message.where, scene)


def _is_reply(message: Message) -> bool:
    thread = message.values.get("thread_ts")
    return isinstance(thread, str) and thread != message.values.get("ts")


def _time(message: Message) -> float:
    """Seconds since 1970."""
    return _number(message.values.get("ts"))


def _root(message: Message) -> float:
    """When the thread of a message began; the message itself where it is in none."""
    return _number(message.values.get("thread_ts")) or _time(message)


def _number(value: object) -> float:
    text = str(value)
    return float(text) if re.fullmatch(r"\d{1,11}(?:\.\d{1,9})?", text) else 0.0


def _text(text: str, names: Mapping[str, str]) -> str:
    """A message without Slack's own marks: `<@U123>` is a name, `<https://...|here>` is `here`."""

    def plain(match: re.Match[str]) -> str:
        kind, target, label = match.groups()
        if kind == "@":
            return f"@{label or names.get(target, target)}"
        return f"{kind.replace('!', '@')}{label or target}"

    return unescape(LINK.sub(plain, text)).strip()


def _names(script: Script) -> dict[str, str]:
    """The users of `users.json`, beside the file or above it; none where there is no such file."""
    for folder in script.path.absolute().parents[:2]:
        try:
            users = json.loads((folder / "users.json").read_text(encoding="utf-8"))
            return {
                str(user["id"]): name
                for user in users
                if (name := _name(user.get("profile") or {}) or user.get("name"))
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return {}


def _name(profile: Mapping[str, Any]) -> str:
    name = profile.get("display_name") or profile.get("real_name") or profile.get("name")
    return name if isinstance(name, str) else ""
