"""WhatsApp's exported chats (.txt), from Android and iOS, with the dates of any locale.

    24/12/2023, 18:05 - Anna: Merry Christmas!           Android
    [24.12.23, 18:05:12] Anna: Frohe Weihnachten!        iOS
    2023/12/24 下午6:05 - 安娜: 圣诞快乐                    Android, Chinese

A message may have several lines. What WhatsApp itself says (encryption, who joined, what was left
out or deleted) is left out: it has no sender, or begins with a left-to-right mark, or is in angle
brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from offbook.data.scripts.days import Days
from offbook.data.scripts.script import Line, Script, Speech

MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
DATE = r"\d{1,4}(?:[./-]\s?|年)\d{1,2}(?:[./-]\s?|月)\d{1,4}[.日]?"
# Each with white space of any kind.
PM = ("下午", "晚上", "中午", "오후", "午後", "pm", "p. m.", "p.m.", "μ.μ.", "م")
AM = ("上午", "凌晨", "早上", "清晨", "오전", "午前", "am", "a. m.", "a.m.", "π.μ.", "ص")
HALF = "|".join(re.escape(half).replace(r"\ ", r"\s") for half in (*PM, *AM))
MOMENT = (
    rf"(?P<date>{DATE}),?\s(?:à\s|um\s|klo\s|kl\.\s)?(?P<first>{HALF})?\s?"
    rf"(?P<hour>\d{{1,2}})[:.](?P<minute>\d{{2}})(?:[:.]\d{{2}})?(?:\s?(?P<last>{HALF}))?"
)
HEADERS = (
    re.compile(rf"\[{MOMENT}\]\s?(?P<rest>.*)", re.IGNORECASE),
    re.compile(rf"{MOMENT}\s[-–—]\s?(?P<rest>.*)", re.IGNORECASE),
)
# 'Anna changed the subject to "x: y"' has no sender: the colon is between quotation marks.
QUOTED = '"[^":]*"|„[^“”:]*[“”]|“[^”:]*”|«[^»:]*»|「[^」:]*」'
SENDER = re.compile(rf"(?P<name>(?:[^:\"„“«「]|{QUOTED}){{1,80}}): (?P<text>.*)")
EDITED = re.compile("\u200e?<[^<>\n]{4,60}>$")
DELETED = re.compile(
    r"(?:this message was deleted|you deleted this message|diese nachricht wurde gelöscht"
    r"|du hast diese nachricht gelöscht|se eliminó este mensaje|eliminaste este mensaje"
    r"|ce message a été supprimé|vous avez supprimé ce message|(?:esta )?mensagem (?:foi )?apagada"
    r"|você apagou esta mensagem|questo messaggio è stato eliminato"
    r"|hai eliminato questo messaggio|此消息已被?删除|此訊息已刪除|您已刪除此訊息|你删除了这条消息"
    r"|данное сообщение удалено|вы удалили данное сообщение|dit bericht is verwijderd"
    r"|u hebt dit bericht verwijderd|null|[\w -]{1,60}\.\w{2,4} \([^()]{4,30}\))\.?",
    re.IGNORECASE,
)
SYSTEM = "messages of the app itself, left out"
NOTE = "photos, deleted messages and the like, left out"


def recognizes(head: Sequence[str]) -> bool:
    """Whether lines begin with a date, a time and a sender, the first of them early."""
    lines = [text for text in head if text.strip()]
    headers = [_header(text) for text in lines]
    senders = [match for match in headers if match and SENDER.fullmatch(match["rest"])]
    return bool(senders) and any(headers[:3]) and len(senders) >= min(2, len(lines))


def read(script: Script) -> Iterator[Line]:
    """Yield the messages."""
    days = Days()
    message: Speech | None = None
    for number, text in script.numbered():
        match = _header(text)
        if match is None:
            if message:
                message.parts.append(text)
            continue
        yield from _written(message, script)
        where, sender = script.where(number), SENDER.fullmatch(match["rest"])
        scene = days.scene(*_moment(match))
        message = None
        if sender:
            name = MARKS.sub("", sender["name"]).replace("~", "").strip()
            message = Speech(name, where, scene, [sender["text"]])
        else:
            script.remarks.add(SYSTEM, where)
    yield from _written(message, script)


def _header(text: str) -> re.Match[str] | None:
    start = text.lstrip("\u200e\u200f\u202a\u202b")
    return HEADERS[not start.startswith("[")].fullmatch(start)


def _moment(match: re.Match[str]) -> tuple[str, float]:
    """Day and minutes since midnight."""
    half = re.sub(r"\s", " ", match["first"] or match["last"] or "").casefold()
    hour = int(match["hour"])
    if half:
        early = half == "中午" and hour == 11  # noon begins before it
        hour = hour % 12 + 12 * (half in PM and not early)
    return match["date"], hour * 60 + int(match["minute"])


def _written(message: Speech | None, script: Script) -> Iterator[Line]:
    """The message, if its sender wrote it."""
    if message is None:
        return
    text = "\n".join(message.parts).rstrip()
    if shorter := EDITED.sub("", text).rstrip():
        text = shorter
    said = MARKS.sub("", text).strip()
    note = text.startswith("\u200e") or DELETED.fullmatch(said) or re.fullmatch("<[^<>]*>", said)
    if note or not said:
        script.remarks.add(NOTE, message.where)
    else:
        yield Line(message.speaker, said, message.where, message.scene)
