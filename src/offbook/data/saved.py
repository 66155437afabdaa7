"""A conversation added to a file of rows that `train` reads."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offbook.data.conversations import RowFormat, read_conversations
from offbook.data.messages import Message
from offbook.errors import ConfigError, DataError
from offbook.settings.sections import DataSettings

if sys.platform != "win32":
    import fcntl

ANOTHER = "name another file, which ends in .jsonl"


def row_of(messages: Sequence[Message], row_format: RowFormat) -> dict[str, Any]:
    """A conversation as a row.

    In the format `messages`, replies that are not trained on have weight 0. In alpaca rows all are
    trained on.
    """
    if row_format == "messages":
        return {
            "messages": [
                {"role": m.role, "content": m.content} | ({} if m.trained else {"weight": 0})
                for m in messages
            ]
        }
    has_system = messages[0].role == "system"
    *earlier, question, reply = [m.content for m in messages[has_system:]]
    row: dict[str, Any] = {"instruction": question, "output": reply}
    if has_system:
        row["system"] = messages[0].content
    if earlier:
        row["history"] = [list(pair) for pair in zip(earlier[::2], earlier[1::2], strict=True)]
    return row


def format_of(path: Path) -> RowFormat | None:
    """The format in which rows are added to a file; None where there are none yet.

    Raises:
        ConfigError: when no row can be added to such a file.
    """
    if path.suffix != ".jsonl":
        raise ConfigError("rows are added to JSONL files", where=str(path), fix=ANOTHER)
    try:
        with path.open("rb") as file:
            start = file.read(2**12).removeprefix(codecs.BOM_UTF8).lstrip()
        if not start:
            return None
        if not start.startswith(b"{"):  # an array, or another encoding
            what = "it does not have one row in UTF-8 on each line"
            raise ConfigError(what, where=str(path), fix=ANOTHER)
        found = read_conversations(str(path), DataSettings()).row_format
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unwritable(path, error) from None
    except DataError as error:
        raise ConfigError(f"no row can be added, since {error}", fix=ANOTHER) from None
    if found == "sharegpt":
        raise ConfigError("it has ShareGPT rows", where=str(path), fix=ANOTHER)
    return found


def append_row(path: Path, messages: Sequence[Message]) -> None:
    """Add a conversation to a JSONL file; what is in it stays.

    Several processes may do so at a time. The row is on the disk when this returns.

    Args:
        path: the file, to which rows of its own format are added; a new one gets `messages` rows.
        messages: the conversation, which ends with a reply.

    Raises:
        ConfigError: when it cannot be written, or this row cannot be added to it.
    """
    format_of(path)
    try:
        with path.open("ab+") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            row_format = format_of(path) or "messages"
            context = any(m.role == "assistant" and not m.trained for m in messages)
            if context and row_format == "alpaca":
                what = "its alpaca rows have no place for an earlier reply that is not trained on"
                raise ConfigError(what, where=str(path), fix=ANOTHER)
            row = row_of(messages, row_format)
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # another program has left its last line open
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write ({error.strerror})", where=str(path))
