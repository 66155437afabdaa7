"""Subtitles: SubRip (.srt), WebVTT (.vtt) and SubStation Alpha (.ass, .ssa), with their speakers.

A speaker is the name of an ASS event, the voice of a WebVTT cue (`<v Anna>`), or a name before a
colon or in brackets. The parsers of other libraries do not say on which line an event is, which
rows need, so the few rules of the formats are here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path

from offbook.data.scripts.drama import SENTENCE_END
from offbook.data.scripts.names import clean, is_name, split_name
from offbook.data.scripts.script import Line, Script, Speech
from offbook.errors import DataError

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
PAUSE = 20.0  # seconds without a word, after which another scene begins
TIME = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[.,:](\d{1,3})"
TIMING = re.compile(rf"\s*{TIME}\s*-->\s*{TIME}.*")
STAMP = re.compile(r"\s*(\d{1,3}):(\d{1,2}):(\d{1,2})[.:](\d{1,3})\s*")
VOICE = re.compile(r"<v(?:\.[\w.]{1,50})?[ \t]+([^<>]{1,100})>")
TAGS = re.compile(r"<[^<>]{0,200}>|\{[^{}]{0,2000}\}")
SOUNDS = re.compile(r"[(（\[【][^()（）\[\]【】]{0,100}[)）\]】]|[♪♫][^♪♫]*[♪♫]|[♪♫]")
SONG = re.compile(r"(?:\s*#[^#]*#)+\s*")  # a whole text, since "#1" is a number
BRACKETED = re.compile(r"\s*[\[(（【]([^\[\]()（）【】]{1,40})[\])）】][:：]?\s*(.+)", re.DOTALL)
BEGINS = ("Format", "Dialogue")
USUAL = (
    "Layer",
    "Start",
    "End",
    "Style",
    "Name",
    "MarginL",
    "MarginR",
    "MarginV",
    "Effect",
    "Text",
)


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start` to `end` seconds, beginning at a line of the file."""

    start: float
    end: float
    speaker: str
    text: str
    number: int


def recognizes(path: Path) -> bool:
    """Whether the name of a file is that of subtitles."""
    return path.suffix.lower() in SUFFIXES


def read(script: Script) -> Iterator[Line]:
    """Yield what is said, in the order of its times."""
    styled = script.path.suffix.lower() in (".ass", ".ssa")
    cues = sorted(_events(script) if styled else _cues(script), key=lambda cue: cue.start)
    scene, until, before = 0, 0.0, Line("", "", "")
    for cue in cues:
        scene += cue.start - until > PAUSE
        for line in _said(cue, script.where(cue.number)):
            goes_on = not line.speaker and before.text and not SENTENCE_END.search(before.text)
            if goes_on and cue.start - until < 1:
                line = replace(line, speaker=before.speaker)
            before = replace(line, scene=scene)
            yield before
        until = max(until, cue.end)


def _cues(script: Script) -> Iterator[Cue]:
    """The cues of SubRip and WebVTT: a line of times, and the text up to a blank line."""
    timing: tuple[float, float] | None = None
    parts, first = list[str](), 0
    for number, text in _with_end(script.numbered()):
        match = TIMING.fullmatch(text)
        if "-->" in text and not match:
            what, fix = "a time that cannot be read", "write it as 00:01:02,345 --> 00:01:04,000"
            raise DataError(what, where=script.where(number), fix=fix)
        if timing and (match or not text.strip()):
            # Where the blank line is missing, the number of the next cue is the last line.
            if match and parts and parts[-1].strip().isdecimal():
                parts.pop()
            yield Cue(*timing, "", "\n".join(parts), first)
            timing = None
        if match:
            times = match.groups(default="0")
            timing, parts = (_seconds(times[:4]), _seconds(times[4:])), []
            first = number + 1
        elif timing:
            parts.append(text)


def _events(script: Script) -> Iterator[Cue]:
    """The dialogue of SubStation Alpha, whose fields are in the order that `Format` says."""
    fields, inside = list(USUAL), False
    for number, text in script.numbered():
        if text.startswith("["):
            inside = text.strip().lower() == "[events]"
        kind, _, rest = text.partition(":")
        if not inside or kind.strip() not in BEGINS:
            continue
        if kind.strip() == "Format":
            # Its older version says "Actor".
            fields = [part.strip().replace("Actor", "Name") for part in rest.split(",")]
            continue
        values = dict(zip(fields, rest.split(",", len(fields) - 1), strict=False))
        times = [STAMP.fullmatch(values.get(key, "")) for key in ("Start", "End")]
        if not times[0] or not times[1] or "Text" not in values:
            what, fix = "an event without its times or text", "correct it as the line Format says"
            raise DataError(what, where=script.where(number), fix=fix)
        said = re.sub(r"\\[Nn]", "\n", values["Text"]).replace("\\h", " ")
        if re.search(r"\{[^{}]*\\p[1-9]", said):
            continue  # a drawing
        start, end = (_seconds(match.groups()) for match in times if match)
        yield Cue(start, end, clean(values.get("Name", "")), said, number)


def _said(cue: Cue, where: str) -> Iterator[Line]:
    """The lines of a cue: one, or those of its voices."""
    text, *voices = VOICE.split(cue.text)
    yield from _spoken(cue.speaker, text, where)
    for name, text in zip(voices[::2], voices[1::2], strict=True):
        yield from _spoken(unescape(name).strip(), text, where)


def _spoken(speaker: str, text: str, where: str) -> Iterator[Line]:
    """The lines of a voice: one, or where dashes or names begin several, those."""
    speech = Speech(speaker, where)
    text = unescape(TAGS.sub("", text))
    if SONG.fullmatch(text):
        return
    for part in text.splitlines():
        dashed = re.match(r"\s*[-–—]\s*(?=\S)", part)
        part = part[dashed.end() :] if dashed else part
        bracketed = BRACKETED.fullmatch(part)
        # A name in brackets is in capitals; a sound is not.
        if bracketed and (bracketed[1] != bracketed[1].upper() or not is_name(bracketed[1])):
            bracketed = None
        named = split_name(part) or (bracketed and (clean(bracketed[1]), bracketed[2]))
        if named or dashed:
            if speech.parts:
                yield speech.line()
            speech = Speech(named[0] if named else speaker, where)
        part = named[1] if named else part
        part = "" if SONG.fullmatch(part) else re.sub(r"\s+", " ", SOUNDS.sub("", part)).strip()
        if part:
            speech.parts.append(part)
    if speech.parts:
        yield speech.line()


def _seconds(parts: Iterable[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{int(seconds)}.{fraction}")


def _with_end(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines, and a blank one after the last."""
    number = 0
    for number, text in lines:
        yield number, text
    yield number + 1, ""
