"""Screenplays and Fountain: a speaker's name on a line of its own, and the speech below it.

The name is in capitals, or centred (indented more than what is said), or begins with `@`. The
syntax of Fountain is that of https://fountain.io/syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from offbook.data.scripts.drama import HEADING, OUTSIDE, finished
from offbook.data.scripts.names import clean, is_name
from offbook.data.scripts.script import WIDE, Line, Script, Speech
from offbook.errors import DataError

CENTRED = 8  # columns
TRANSITION = re.compile(
    r"[ \t]*(?:>.*|.*\bTO:|(?:FADE|CUT|DISSOLVE|SMASH|MATCH|IRIS)\b.*|THE END\.?|(?:END|BEGIN)\b.*"
    r"|\(?(?:MORE|CONTINUED:?|CONT['’]D)\)?:?(?:[ ]*\(\d+\))?|MONTAGE.*|INTERCUT.*|SUPER.*|TITLE.*"
    r"|BACK TO.*|LATER\.?|CREDITS.*|\d+\.?)[ \t]*"
)
NOTE_BEGINS = re.compile(r"\[\[|/\*")
NOTE = re.compile(r"\[\[[^\[\]]{0,2000}\]\]|/\*[^*]{0,2000}\*/")
EMPHASIS = re.compile(r"(\*{1,3}|_)(?=\S)([^*_\n]{1,400}?)(?<=\S)\1")
FIRST = re.compile(f"[A-Z{WIDE}]")
SHARE = 0.04  # of the lines that are not blank, which are names, in a screenplay


def recognizes(head: Sequence[str]) -> bool:
    """Whether enough lines are names alone, and some name comes twice."""
    lines = [*head, ""]
    names = [
        clean(text)
        for before, text, after in zip(["", *lines], lines, lines[1:], strict=False)
        if _is_cue(before, text, after)
    ]
    filled = sum(1 for text in head if text.strip())
    return len(names) >= max(2, SHARE * filled) and len(set(names)) < len(names)


def read(script: Script) -> Iterator[Line]:
    """Yield the speeches."""
    speech: Speech | None = None
    scene, before = 0, ""
    for number, text, after in _with_next(_without_notes(script)):
        where = script.where(number)
        heading = _is_heading(text)
        if heading or _is_cue(before, text, after):
            yield from finished(speech, script)
            scene += heading
            speech = None if heading else Speech(clean(text), where, scene)
        elif not text.strip():
            if speech and text != "  ":  # two spaces keep a speech going
                yield from finished(speech, script)
                speech = None
        elif speech and not TRANSITION.fullmatch(text):
            speech.parts.append(EMPHASIS.sub(r"\2", text.strip().lstrip("~")))
        elif not text.lstrip().startswith("="):
            script.remarks.add(OUTSIDE, where)
        before = text
    yield from finished(speech, script)


def _is_heading(text: str) -> bool:
    forced = re.match(r"\.[^.\s]", text)
    return bool(forced or HEADING.fullmatch(text)) and not text.startswith("@")


def _is_cue(before: str, text: str, after: str) -> bool:
    """Whether a line is the name of who says the next one."""
    if before.strip() or not text.strip() or not after.strip():
        return False
    if text.lstrip().startswith("@"):
        return bool(clean(text))
    if TRANSITION.fullmatch(text) or HEADING.fullmatch(text) or not is_name(text):
        return False
    name = clean(text)
    if name.upper() == name and name.lower() != name:
        return True
    indent = _indent(text)
    return indent >= CENTRED and indent > _indent(after) and bool(FIRST.match(name))


def _indent(text: str) -> int:
    """Columns before the first character."""
    wide = text.expandtabs(8).replace("\u3000", "  ")
    return len(wide) - len(wide.lstrip(" "))


def _without_notes(script: Script) -> Iterator[tuple[int, str]]:
    """The lines without Fountain's notes and what is commented out, on one line or on several."""
    end, begun = "", 0
    for number, text in script.numbered():
        if end == "]]" and not text.strip():
            end = ""  # a note ends at a blank line at the latest
        if end:
            _, found, text = text.partition(end)
            if not found:
                continue
            end = ""
        text = NOTE.sub("", text)
        if begin := NOTE_BEGINS.search(text):
            end, begun = {"[[": "]]", "/*": "*/"}[begin[0]], number
            text = text[: begin.start()]
        yield number, text
    if end == "*/":
        fix = "write */ where it ends"
        raise DataError("a comment (/*) is not closed", where=script.where(begun), fix=fix)


def _with_next(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    held: tuple[int, str] | None = None
    for number, text in lines:
        if held:
            yield *held, text
        held = number, text
    if held:
        yield *held, ""
