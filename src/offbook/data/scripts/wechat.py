"""WeChat's chats, as the common export tools write them: CSV, or JSON with the same columns.

The columns have the names of WeChatMsg (`IsSender`, `StrContent`, ...), PyWxDump (`is_sender`,
`msg`, ...), or of tools that write camelCase (`isSend`, `content`, `senderDisplayName`, ...).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any

from offbook.data.delimited import read_csv as read_table
from offbook.data.scripts.days import Days
from offbook.data.scripts.json_chats import messages
from offbook.data.scripts.script import Line, NoScriptError, Script
from offbook.data.text import undecodable
from offbook.errors import DataError

TEXTS = ("StrContent", "msg", "content", "strContent")
SELF = ("IsSender", "is_sender", "isSend", "isSelf", "isSender")
NAMES = (
    *("senderDisplayName", "senderName", "accountName", "Remark", "NickName", "nickname", "Sender"),
    *("sender", "senderUsername", "talkerName", "talker", "room_name"),
)
TIMES = ("StrTime", "formattedTime", "time", "CreateTime", "createTime", "timestamp")
TYPES = ("type_name", "Type", "localType", "type")
TEXT_TYPES = frozenset(("1", "文本", "文本消息", "text", "引用消息", "引用回复", "引用"))
ME = "我"  # who exported the chat, where the file has no name
EMPTY = "messages without text (pictures, voice, calls), left out"


def recognizes_message(values: Mapping[str, Any]) -> bool:
    """Whether this is a message: a text, who sent it, and whether that was the user."""
    has = [any(key in values for key in keys) for keys in (TEXTS, NAMES)]
    return all(has) and any(key in values for key in (*SELF, *TYPES))


def read_csv(script: Script) -> Iterator[Line]:
    """Yield the messages of a CSV file."""
    return _lines(script, _csv(script))


def read_json(script: Script) -> Iterator[Line]:
    """Yield the messages of a JSON file."""
    return _lines(script, ((one.values, one.where) for one in messages(script)))


def _csv(script: Script) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        for row, where in read_table(script.path, script.remarks, script.encoding):
            if isinstance(row, DataError):
                raise row
            assert isinstance(row, dict)
            if not recognizes_message(row):
                fix = f"it needs a column {', '.join(TEXTS[:3])} and one of {', '.join(NAMES[:5])}"
                raise NoScriptError("not a WeChat export", where=where, fix=fix)
            yield row, where
    except UnicodeError:
        raise undecodable(script.path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(script.path)) from None


def _lines(script: Script, rows: Iterator[tuple[Mapping[str, Any], str]]) -> Iterator[Line]:
    days = Days()
    for values, where in rows:
        scene = days.of_iso(_time(_first(values, TIMES)))
        text, kind = _first(values, TEXTS).strip(), _first(values, TYPES)
        if not text or (kind and kind not in TEXT_TYPES) or text.startswith(("<?xml", "<msg")):
            script.remarks.add(EMPTY, where)
            continue
        mine = _first(values, SELF).casefold() in ("1", "true", "是")
        yield Line(_first(values, NAMES[:-3] if mine else NAMES).strip() or ME, text, where, scene)


def _first(values: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The first of these that has a value."""
    return next((str(values[key]) for key in keys if values.get(key) not in (None, "")), "")


def _time(value: str) -> str:
    """A time as `2024-01-05 15:20:33`; (milli)seconds since 1970 are taken as they are in China."""
    if re.fullmatch(r"\d{9,11}|\d{13}", value):
        seconds = int(value) / (1000 if len(value) == 13 else 1)
        zone = datetime.timezone(datetime.timedelta(hours=8))
        return datetime.datetime.fromtimestamp(seconds, zone).isoformat()
    return value
