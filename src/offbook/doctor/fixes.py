"""A cleaned copy of a data set, and a log of what was changed in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from offbook.data.conversations import ConversationReader
from offbook.data.formats import read_rows
from offbook.data.messages import Conversation
from offbook.data.personal import Replacer
from offbook.data.remarks import Remarks
from offbook.data.values import text_of, unpacked
from offbook.doctor.doctor import once
from offbook.doctor.findings import KINDS, Hit, Severity
from offbook.doctor.leftovers import CONTROL, NOTHING, no_answer_in
from offbook.doctor.row import Row
from offbook.errors import ConfigError, DataError
from offbook.files.strict_json import to_json

LOG = ".changes.jsonl"  # in place of the copy's `.jsonl`
ANOTHER = "name another file: nothing that exists is replaced"
# What is done to a row with a finding: its text is changed, or the row is left out.
CHANGED = ("empty_cell", "swapped", "control_text", "personal")
LEFT_OUT = (
    *("duplicate", "near_duplicate", "boilerplate", "placeholder", "no_answer", "garbled"),
    *("conflict", "model", "empty_prompt", "unfinished", "length", "language"),
)
# A row that is like another stays where that one is left out for a fault of its own.
ONE_STAYS = ("near_duplicate", "conflict")


@dataclass
class Fixed:
    """What became of the rows.

    Attributes:
        copy, log: the files that were written.
        kept: rows in the copy.
        left_out, changed: how many rows of each kind of finding.
    """

    copy: Path
    log: Path
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


def require_place(copy: Path) -> None:
    """Refuse a place where no copy can be written; rows may take minutes to look at.

    Raises:
        ConfigError: when it is no JSONL file, it or its log exists, or its folder does not.
    """
    if copy.suffix != ".jsonl":
        raise ConfigError("the copy is a JSONL file", where=str(copy), fix="end its name in .jsonl")
    for file in (copy, _log_of(copy)):
        if os.path.lexists(file):
            raise ConfigError("exists already", where=str(file), fix=ANOTHER)
    if not copy.parent.is_dir():
        raise ConfigError("no such folder", where=str(copy.parent), fix="make it first")


def write_fixed(
    reader: ConversationReader,
    hits: Mapping[str, Sequence[Hit]],
    severity: Severity,
    copy: Path,
) -> Fixed:
    """Write the rows of a data set without what was found in them, and a log of each change.

    Args:
        reader: the rows; their files are only read.
        hits: the rows of each kind of finding.
        severity: `fix`, or `look` to act on what a person should look at, too.
        copy: a JSONL file that does not exist; see `require_place`.

    Raises:
        ConfigError: when the file exists, or cannot be written.
    """
    log = _log_of(copy)
    todo = _by_row(hits, severity)
    result = Fixed(copy, log)
    written: list[Path] = []
    try:
        with _new_file(copy, written) as rows, _new_file(log, written) as changes:
            for line, entries in _fixed_rows(reader, todo, result):
                rows.write(line)
                changes.writelines(to_json(entry) + "\n" for entry in entries)
    except BaseException:
        for file in written:  # half a copy could be taken for a whole one
            file.unlink(missing_ok=True)
        raise
    return result


def _log_of(copy: Path) -> Path:
    return copy.with_name(copy.name.removesuffix(".jsonl") + LOG)


@contextmanager
def _new_file(file: Path, written: list[Path]) -> Iterator[TextIO]:
    """A file that did not exist before, to write into."""
    try:
        # Half a surrogate pair becomes its escape in JSON.
        with file.open("x", encoding="utf-8", errors="backslashreplace") as stream:
            written.append(file)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        raise ConfigError("exists already", where=str(file), fix=ANOTHER) from None
    except OSError as error:
        raise ConfigError(f"cannot write ({error.strerror})", where=str(file)) from None


def _by_row(
    hits: Mapping[str, Sequence[Hit]], severity: Severity
) -> dict[int, list[tuple[str, str]]]:
    """The kinds, with details, that are acted on in each row."""
    kinds = [kind for kind in (*LEFT_OUT, *CHANGED) if KINDS[kind].severity in ("fix", severity)]
    alone = [kind for kind in kinds if kind in LEFT_OUT and kind not in ONE_STAYS]
    gone = {hit.row for kind in alone for hit in hits.get(kind, ())}
    todo: dict[int, list[tuple[str, str]]] = {}
    for kind in kinds:
        for hit in hits.get(kind, ()):
            if not (kind in ONE_STAYS and hit.like_row in gone):
                todo.setdefault(hit.row, []).append((kind, hit.why))
    return todo


def _fixed_rows(
    reader: ConversationReader, todo: Mapping[int, list[tuple[str, str]]], result: Fixed
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The line of each row in the copy, which may be empty, and its entries in the log."""
    replacer = Replacer()
    raw = ((value, where) for path in reader.paths for value, where in read_rows(path))
    for number, (conversation, (value, where)) in enumerate(zip(once(reader), raw, strict=True)):
        found = dict(todo.get(number, ()))
        out = next((kind for kind in found if kind in LEFT_OUT), None)
        new = _changed(value, conversation, found, replacer) if found and not out else value
        if new is None:  # then it is left out
            out = next(iter(found))
        if out:
            result.left_out[out] += 1
            yield "", [{"row": where, "kind": out, "change": "left out", "why": found[out]}]
            continue
        result.kept += 1
        result.changed.update(found.keys())
        change = {"row": where, "change": "changed"}
        entries = [change | {"kind": kind, "why": why} for kind, why in found.items()]
        # Parquet has values that JSON has no type for, such as decimal numbers: they become text.
        yield to_json(new, default=str) + "\n", entries


def _changed(
    value: object, conversation: Conversation, kinds: Mapping[str, str], replacer: Replacer
) -> object:
    """A row without what was found in it; None where that is not possible."""
    original = value
    if "empty_cell" in kinds:
        said = {m.content for m in conversation.messages if m.role != "system"}
        value = _edited(value, lambda text: text if text in said or not _is_nothing(text) else "")
        if value == original or any(map(_is_nothing, said)):  # a part of a text, or all of one
            return None
    pairs = Row.of(0, conversation).pairs
    replies = [m.content for m in conversation.messages if m.role == "assistant"]
    swap: dict[str, str] = {}
    if "swapped" in kinds:
        prompt, reply = pairs[0]
        if len(pairs) > 1:
            return None
        swap, replies = {prompt: reply, reply: prompt}, [prompt]
    edits: list[tuple[str, str]] = []

    def edit(text: str) -> str:
        new = swap.get(text, text)
        if "control_text" in kinds:
            # A reply may be two texts of the row: its reasoning, and what is said.
            is_reply = any(new.strip() in reply for reply in replies)
            new = without_control_text(new, is_reply)
        new = replacer.replace(new) if "personal" in kinds else new
        edits.append((text, new))
        return new

    done = _edited(value, edit)
    before = {text for text, _ in edits}
    emptied = any(old.strip() and (not new.strip() or no_answer_in(new)) for old, new in edits)
    # A prompt that is written in two parts, or a reply with reasoning, is no text of the row.
    return None if emptied or done == original or not swap.keys() <= before else done


def _is_nothing(text: str) -> bool:
    return NOTHING.fullmatch(text.strip()) is not None


def without_control_text(text: str, is_reply: bool) -> str:
    """A text without the control text of chat templates; a reply ends where it begins."""
    if not is_reply:
        return CONTROL.sub("", text).strip()
    parts = [part.strip() for part in CONTROL.split(text)]
    return next(filter(None, parts), "")


def _edited(value: Any, edit: Callable[[str], str]) -> Any:
    """A row with another text in place of each of its own."""
    if isinstance(value, dict):
        return {key: _edited(item, edit) for key, item in value.items()}
    if isinstance(value, list):
        with suppress(DataError):  # a text that is written in parts
            old = text_of(value, "", "", Remarks())
            new = edit(old)
            return value if new == old else [{**value[0], "text": new}]
        return [_edited(item, edit) for item in value]
    if isinstance(value, str):
        turns = unpacked(value)
        if not isinstance(turns, list):
            return edit(value)
        edited = _edited(turns, edit)
        return value if edited == turns else to_json(edited)
    return value
