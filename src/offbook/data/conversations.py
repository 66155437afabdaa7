"""Rows in any of three common formats, as conversations.

Each problem is reported with its `file:line`, and all problems of a file are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from offbook.data.columns import renamed
from offbook.data.faults import Faults
from offbook.data.foreign import foreign, uses_tools
from offbook.data.formats import is_sample, read_rows, resolve
from offbook.data.messages import Conversation, Message, Role, check_order
from offbook.data.remarks import Remarks
from offbook.data.unknown_keys import UnknownKeys, renames
from offbook.data.values import (
    WEIGHT_KEYS,
    history_of,
    is_trained,
    kind_of,
    optional_text,
    text_of,
    unpacked,
)
from offbook.errors import DataError, first_few, shorten, suggest
from offbook.settings.sections import ROW_KEYS, DataSettings

RowFormat = Literal["alpaca", "sharegpt", "messages"]

FORMAT_KEYS: Mapping[RowFormat, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system"),
    "messages": ("messages", "system"),
}
FORMAT_NAMES: Mapping[RowFormat, str] = {
    "alpaca": "alpaca rows (instruction, input, output)",
    "sharegpt": "ShareGPT rows (conversations: from, value)",
    "messages": "OpenAI rows (messages: role, content)",
}
REASONING_KEY = "reasoning_content"  # what a reasoning model thinks before its reply
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
TURN_KEYS = (("from", "value"), ("role", "content"))
PLACE = re.compile(r".+:\d+", re.DOTALL)  # `offbook lines` writes where in a script a row begins


class ConversationReader:
    """A data set that can be iterated any number of times.

    Attributes:
        paths: the files it is read from.
        row_format: the format of the rows of the first file.
    """

    def __init__(
        self, paths: Sequence[Path], settings: DataSettings, repeats: Sequence[float] = ()
    ) -> None:
        """Find the format of each file from its first row.

        Args:
            paths: the files.
            settings: how rows become conversations.
            repeats: how often the rows of each file are read; once where it is not given.
        """
        self.paths = tuple(paths)
        self._settings = settings
        self._repeats = dict(zip(paths, repeats, strict=False))
        self._remarks = Remarks()
        self._unknown = UnknownKeys(())
        self._columns = {path: {} if is_sample(path) else settings.columns for path in self.paths}
        self._formats = {path: self._detect(path) for path in self.paths}
        self.row_format = self._formats[self.paths[0]]

    def __iter__(self) -> Iterator[Conversation]:
        """Yield each row's conversation.

        Raises:
            DataError: after the last row, naming all unknown keys and up to 20 different faults.
        """
        faults = Faults()
        self._unknown = UnknownKeys(self._settings.ignore_keys)
        self._remarks.clear()
        for path in self.paths:
            rows, repeat, done = read_rows(path, self._remarks), self._repeats.get(path, 1), 0.0
            while not faults.many:
                try:
                    row, where = next(rows)
                    conversation = self._conversation(row, where, path)
                    done += repeat
                    # After an unknown key, rows are only checked: nobody would use them.
                    if conversation and not self._unknown.filled:
                        for _ in range(int(done) - int(done - repeat)):
                            yield conversation
                except StopIteration:
                    break
                except DataError as error:
                    faults.add(error)
        if found := faults.error(self._unknown.errors(), self.paths):
            raise found
        for what, where in self._unknown.empty():
            self._remarks.add(what, where)

    def describe(self) -> str:
        """`rows.json: alpaca rows (instruction, input, output)`"""
        texts = []
        for row_format in dict.fromkeys(self._formats.values()):
            of_it = [str(path) for path, found in self._formats.items() if found == row_format]
            texts.append(f"{first_few(of_it, 3)}: {FORMAT_NAMES[row_format]}")
        return "; ".join(texts)

    def notices(self) -> list[str]:
        """What the rows read so far have that was read in another way than the file's name says."""
        return self._remarks.lines()

    def _detect(self, path: Path) -> RowFormat:
        faults = Faults()
        for found, where in read_rows(path, self._remarks):
            if isinstance(found, DataError):
                faults.add(found)
                if faults.many:
                    break
                continue
            row = self._renamed(found, where, path)
            if "conversations" in row:
                return "sharegpt"
            if "messages" in row:
                return "messages"
            if not {"instruction", "output", "input"} & set(row):
                raise self._foreign(row, where) or _no_format(row, where)
            return "alpaca"
        if error := faults.error((), self.paths):
            raise error
        raise DataError("no rows", where=str(path), fix="check that this is the right file")

    def _foreign(self, row: Mapping[str, Any], where: str) -> DataError | None:
        return foreign(row, ROW_KEYS, self._settings.ignore_keys, where)

    def _renamed(self, row: object, where: str, path: Path) -> Mapping[str, Any]:
        """The row under our names of its keys."""
        if not isinstance(row, dict):
            raise DataError(f"a row is {kind_of(row)}, not an object", where=where)
        return renamed(row, self._columns[path], where, self._remarks)

    def _conversation(self, found: object, where: str, path: Path) -> Conversation | None:
        """The conversation of a row; None where a key that it needs may have an unknown name."""
        if isinstance(found, DataError):
            raise found
        row = self._renamed(found, where, path)
        if error := self._foreign(row, where):
            raise error
        row_format = self._formats[path]
        known = FORMAT_KEYS[row_format]
        source = row.get("source")
        if row_format == "messages" and isinstance(source, str) and PLACE.fullmatch(source):
            known, where = (*known, "source"), source
        unknown = self._unknown.check(row, known, where)
        for key in {"alpaca": ("instruction", "output")}.get(row_format, known[:1]):
            if key not in row:
                if unknown:
                    return None
                fix = "every row needs one"
                if key == "instruction" and "input" in row:
                    fix = 'rename "input" to "instruction"'
                raise DataError(f'no "{key}"', where=where, fix=fix)
        system = self._system(row, where)
        if row_format == "alpaca":
            turns = self._alpaca(row, where)
        else:
            key = FORMAT_KEYS[row_format][0]
            turns = self._turns(row[key], where, row_format)
        check_order(turns, where, bool(system))
        if self._settings.system and not system and turns[0].role != "system":
            system = [Message("system", self._settings.system)]
        return Conversation(_up_to_trained(system + turns, where), where)

    def _system(self, row: Mapping[str, Any], where: str) -> list[Message]:
        text = optional_text(row, "system", where, self._remarks)
        return [Message("system", text)] if text else []

    def _alpaca(self, row: Mapping[str, Any], where: str) -> list[Message]:
        text = partial(text_of, where=where, remarks=self._remarks)
        messages = []
        for number, pair in enumerate(history_of(row, where), 1):
            if not isinstance(pair, list) or len(pair) != 2:
                what = f'"history" {number} is not a pair'
                fix = 'write it as a pair: ["question", "reply"]'
                raise DataError(what, where=where, fix=fix)
            messages.append(Message("user", text(pair[0], f'"history" {number}')))
            messages.append(Message("assistant", text(pair[1], f'"history" {number}')))
        question = text(row["instruction"], '"instruction"')
        extra = optional_text(row, "input", where, self._remarks)
        separator = self._settings.input_separator if question and extra else ""
        messages.append(Message("user", question + separator + extra))
        messages.append(Message("assistant", text(row["output"], '"output"')))
        return messages

    def _turns(self, turns: object, where: str, row_format: RowFormat) -> list[Message]:
        turns = unpacked(turns)
        if not isinstance(turns, list):
            what = f"the turns are {kind_of(turns)}, not a list"
            raise DataError(what, where=where, fix="write a list of turns")
        messages = []
        for number, turn in enumerate(turns, 1):
            pairs = TURN_KEYS if row_format == "sharegpt" else TURN_KEYS[::-1]
            given = turn if isinstance(turn, dict) else {}
            role_key, text_key = next((pair for pair in pairs if given.keys() >= {*pair}), pairs[0])
            if uses_tools(given, given.get(role_key), self._settings.ignore_keys):
                fix = "offbook trains on replies in text; leave such rows out"
                raise DataError("its turns call tools", where=where, fix=fix)
            known = (role_key, text_key, REASONING_KEY, *WEIGHT_KEYS)
            if given.keys() & {role_key, text_key}:  # else it is no turn at all
                self._unknown.check(given, known, where, in_turns=True)
            if not given.keys() >= {role_key, text_key}:
                what = f'turn {number} has no "{role_key}" or "{text_key}"'
                raise DataError(what, where=where, fix="every turn needs both")
            name = text_of(given[role_key], f'turn {number}: "{role_key}"', where, self._remarks)
            role = ROLES.get(name.casefold())
            if role is None:
                what = f'turn {number}: unknown role "{shorten(name)}"'
                fix = suggest(name, list(ROLES)) or f"the roles are {', '.join(ROLES)}"
                raise DataError(what, where=where, fix=fix)
            content = text_of(given[text_key], f"turn {number}", where, self._remarks)
            reasoning = optional_text(given, REASONING_KEY, where, self._remarks).strip("\n")
            if reasoning and role != "assistant":
                what = f'turn {number}: "{REASONING_KEY}" in a message of the role "{name}"'
                raise DataError(what, where=where, fix="only a reply has one; remove it")
            if reasoning:
                content = f"<think>\n{reasoning}\n</think>\n\n{content}"
            trained = is_trained(given, role, number, where)
            if not trained:
                self._remarks.add("a reply of weight 0 is context, and not trained on", where)
            messages.append(Message(role, content, trained))
        return messages


def read_conversations(
    source: str, settings: DataSettings | None = None, commit: str | None = None
) -> ConversationReader:
    """Open a data set by file path, sample name or hub id.

    Args:
        source: a file, folder or pattern; a key of `SAMPLES`; or a hub data set; see `resolve`.
        settings: how rows become conversations.
        commit: of a hub data set; by default, the newest.

    Raises:
        DataError: when there is no such data, or the format cannot be found from its first row.
    """
    return ConversationReader(resolve(source, commit), settings or DataSettings())


def _no_format(row: Mapping[str, Any], where: str) -> DataError:
    """The error for a row with the keys of none of the formats."""
    what = f"cannot tell the format from the keys {shorten(', '.join(map(repr, row)))}"
    fix = "use instruction/input/output, conversations (from, value) or messages (role, content)"
    others = renames(row, ROW_KEYS)
    if others:
        pairs = [f'"{name}" to "{known}"' for name, known in others.items()]
        fix = f"rename {' and '.join(pairs)}; or {fix}"
    elif len(row) > 1:
        fix = f"name the keys with 'data.columns={{instruction: KEY, output: KEY}}'; or {fix}"
    return DataError(what, where=where, fix=fix)


def _up_to_trained(messages: Sequence[Message], where: str) -> tuple[Message, ...]:
    """The messages up to the last reply that is trained on; nothing depends on later ones."""
    trained = [k for k, m in enumerate(messages) if m.role == "assistant" and m.trained]
    if not trained:
        raise DataError(
            "no reply is trained on: each has weight 0",
            where=where,
            fix="set the weight of one to 1, or remove the row",
        )
    return tuple(messages[: trained[-1] + 1])
