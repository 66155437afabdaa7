"""Rows in any of three common formats, as conversations.

Each problem is reported with its `file:line`, and all problems of a file are reported together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offbook.config import DataSettings
from offbook.data.formats import Row, read_rows, resolve
from offbook.errors import DataError, first_few, joined, shorten, suggest

Role = Literal["system", "user", "assistant"]
RowFormat = Literal["alpaca", "sharegpt", "messages"]

MAX_ERRORS = 20

FORMAT_KEYS: Mapping[RowFormat, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system"),
    "messages": ("messages",),
}
FORMAT_NAMES: Mapping[RowFormat, str] = {
    "alpaca": "alpaca rows (instruction, input, output)",
    "sharegpt": "ShareGPT rows (conversations: from, value)",
    "messages": "OpenAI rows (messages: role, content)",
}
REASONING_KEY = "reasoning_content"  # what a reasoning model thinks before its reply
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as messages: system text, if any, then alternating user and assistant turns.

    `source` is the `file:line` of the row.
    """

    messages: tuple[Message, ...]
    source: str = ""

    @property
    def replies(self) -> tuple[int, ...]:
        """The positions of the assistant's messages."""
        return tuple(k for k, m in enumerate(self.messages) if m.role == "assistant")

    @property
    def prompt_key(self) -> bytes:
        """8 bytes, equal for conversations that begin with the same system and user text.

        White space and case make no difference: "Hello" and "hello " are the same prompt.
        """
        opening = [m.content for m in self.messages[:2] if m.role != "assistant"]
        return _digest(" ".join(part.split()).casefold() for part in opening)

    @property
    def key(self) -> bytes:
        """8 bytes, equal for conversations whose texts are exactly equal."""
        return _digest(m.content for m in self.messages)


class ConversationReader:
    """A data set that can be iterated any number of times.

    Attributes:
        paths: the files it is read from.
        row_format: the format of all rows, found from the first one.
    """

    def __init__(self, paths: Sequence[Path], settings: DataSettings) -> None:
        self.paths = tuple(paths)
        self._settings = settings
        self.row_format = self._detect()

    def __iter__(self) -> Iterator[Conversation]:
        """Yield each row's conversation.

        Raises:
            DataError: after the last row, naming up to 20 bad ones.
        """
        errors: list[DataError] = []
        rows = self._rows()
        while len(errors) < MAX_ERRORS:
            try:
                row, where = next(rows)
                yield self._conversation(row, where)
            except StopIteration:
                break
            except DataError as error:
                errors.append(error)
        if errors:
            raise joined(errors, more=len(errors) >= MAX_ERRORS)

    def describe(self) -> str:
        """`rows.json: alpaca rows (instruction, input, output)`"""
        names = first_few([str(path) for path in self.paths], 3)
        return f"{names}: {FORMAT_NAMES[self.row_format]}"

    def _rows(self) -> Iterator[Row]:
        for path in self.paths:
            yield from read_rows(path)

    def _detect(self) -> RowFormat:
        errors: list[DataError] = []
        for row, where in self._rows():
            if isinstance(row, DataError):
                errors.append(row)
                if len(errors) < MAX_ERRORS:
                    continue
                break
            if not isinstance(row, dict):
                raise DataError(f"a row is {_kind(row)}, not an object", where=where)
            if "conversations" in row:
                return "sharegpt"
            if "messages" in row:
                return "messages"
            if not {"instruction", "output", "input"} & set(row):
                raise DataError(
                    f"cannot tell the format from the keys {shorten(', '.join(map(repr, row)))}",
                    where=where,
                    fix="use instruction/input/output, conversations (from, value) "
                    "or messages (role, content)",
                )
            return "alpaca"
        if errors:
            raise joined(errors, more=len(errors) >= MAX_ERRORS)
        raise DataError(
            "no rows", where=str(self.paths[0]), fix="check that this is the right file"
        )

    def _conversation(self, row: object, where: str) -> Conversation:
        if isinstance(row, DataError):
            raise row
        if not isinstance(row, dict):
            raise DataError(f"a row is {_kind(row)}, not an object", where=where)
        known = FORMAT_KEYS[self.row_format]
        for key in row:
            if key not in known and key not in self._settings.ignore_keys:
                name = shorten(key)
                fix = suggest(key, known) or f"skip it with data.ignore_keys=[{name}]"
                raise DataError(f'unknown key "{name}"', where=where, fix=fix)
        for key in {"alpaca": ("instruction", "output")}.get(self.row_format, known[:1]):
            if key not in row:
                raise DataError(f'no "{key}"', where=where, fix="every row needs one")
        if self.row_format == "alpaca":
            messages = self._alpaca(row, where)
        elif self.row_format == "sharegpt":
            messages = _system(row, where) + _turns(row["conversations"], "from", "value", where)
        else:
            messages = _turns(row["messages"], "role", "content", where)
        if self._settings.system and messages and messages[0].role != "system":
            messages.insert(0, Message("system", self._settings.system))
        _check_order(messages, where)
        return Conversation(tuple(messages), where)

    def _alpaca(self, row: Mapping[str, Any], where: str) -> list[Message]:
        messages = _system(row, where)
        history = [] if row.get("history") is None else row["history"]
        if not isinstance(history, list):
            raise DataError(f'"history" is {_kind(history)}, not a list of pairs', where=where)
        for number, pair in enumerate(history, 1):
            if not isinstance(pair, list) or len(pair) != 2:
                raise DataError(f'"history" {number} is not a [question, reply] pair', where=where)
            messages.append(Message("user", _text(pair[0], f'"history" {number}', where)))
            messages.append(Message("assistant", _text(pair[1], f'"history" {number}', where)))
        question = _text(row["instruction"], '"instruction"', where)
        extra = _optional(row, "input", where)
        separator = self._settings.input_separator if question and extra else ""
        messages.append(Message("user", question + separator + extra))
        messages.append(Message("assistant", _text(row["output"], '"output"', where)))
        return messages


def read_conversations(source: str, settings: DataSettings | None = None) -> ConversationReader:
    """Open a data set by file path, sample name or hub id.

    Args:
        source: a JSON, JSONL, CSV or Parquet file; `lighthouse` or `teahouse-zh`; or a hub data
            set, `owner/name` or `owner/name:file`.
        settings: system text, input separator and keys to ignore.

    Raises:
        DataError: when there is no such data, or the format cannot be found from its first row.
    """
    return ConversationReader(resolve(source), settings or DataSettings())


def _system(row: Mapping[str, Any], where: str) -> list[Message]:
    text = _optional(row, "system", where)
    return [Message("system", text)] if text else []


def _turns(turns: object, role_key: str, text_key: str, where: str) -> list[Message]:
    if not isinstance(turns, list):
        raise DataError(f"the turns are {_kind(turns)}, not a list", where=where)
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not {role_key, text_key} <= set(turn):
            raise DataError(f'turn {number} has no "{role_key}" or "{text_key}"', where=where)
        known = (role_key, text_key, REASONING_KEY)
        for key in turn:
            if key not in known:
                near = suggest(key, known)
                fix = near or "remove it: it would not be trained on"
                raise DataError(
                    f'turn {number}: unknown key "{shorten(key)}"', where=where, fix=fix
                )
        role = _text(turn[role_key], f'turn {number}: "{role_key}"', where)
        if role not in ROLES:
            fix = suggest(role, list(ROLES)) or f"the roles are {', '.join(ROLES)}"
            raise DataError(f'turn {number}: unknown role "{shorten(role)}"', where=where, fix=fix)
        text = _text(turn[text_key], f"turn {number}", where)
        reasoning = _optional(turn, REASONING_KEY, where).strip("\n")
        if reasoning and ROLES[role] != "assistant":
            what = f'turn {number}: "{REASONING_KEY}" in a message of the role "{role}"'
            raise DataError(what, where=where, fix="only a reply has one; remove it")
        if reasoning:
            text = f"<think>\n{reasoning}\n</think>\n\n{text}"
        messages.append(Message(ROLES[role], text))
    return messages


def _check_order(messages: Sequence[Message], where: str) -> None:
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for number, message in enumerate(turns, 1):
        expected = "user" if number % 2 else "assistant"
        if message.role != expected:
            raise DataError(
                f'turn {number} has the role "{message.role}", not "{expected}"',
                where=where,
                fix="user and assistant take turns, the user first; system text goes before them",
            )
        if not message.content.strip():
            name = "reply" if message.role == "assistant" else "prompt"
            turn = f" of turn {number}" if len(turns) > 2 else ""
            raise DataError(f"the {name}{turn} is empty", where=where, fix="fill or remove the row")
    if not turns or turns[-1].role != "assistant":
        raise DataError("no reply at the end", where=where, fix="end with the assistant's turn")


def _optional(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    return "" if value is None else _text(value, f'"{key}"', where)


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is {_kind(value)}, not text", where=where, fix="put it in quotes")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(
            f"{name} has half a surrogate pair", where=where, fix="correct the broken escape"
        )
    return value


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _digest(parts: Iterator[str]) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
