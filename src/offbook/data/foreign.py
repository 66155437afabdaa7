"""Rows that are made for another kind of training, named for what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offbook.data.unknown_keys import ignoring, renames
from offbook.errors import DataError, shorten

TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "tool_response", "observation")
KTO_KEYS = ("kto_tag", "label")
REPLIES = ("assistant", "gpt", "model")


def foreign(
    row: Mapping[str, Any], known: Sequence[str], ignored: Sequence[str], where: str
) -> DataError | None:
    """What a row of preferences, of judged replies or of plain text is, and how it is converted.

    Args:
        row: its values by key.
        known: all keys of the formats that are read.
        ignored: keys that the user ignores.
        where: its `file:line`.
    """
    names = [name for name, value in row.items() if name not in ignored and value is not None]
    for name in names:
        other = name.replace("chosen", "rejected")
        if other != name and other in names and isinstance(row[name], (str, list, dict)):
            return _preferences(row, name, other, known, ignored, where)
    for name in KTO_KEYS:
        if name in names and (isinstance(row[name], bool) or name == KTO_KEYS[0]):
            return DataError(
                f'"{name}" tells good replies from bad ones (KTO); offbook trains on all of them',
                where=where,
                fix="remove the rows whose reply is bad, and set "
                + ignoring([key for key in names if key not in known], ignored),
            )
    if "tools" in names and row["tools"] and "tools" not in known:
        return DataError(
            'tools that a model may call ("tools"); offbook trains on replies in text',
            where=where,
            fix="to train on the replies alone, set " + ignoring(["tools"], ignored),
        )
    if "text" in names and not {*names} & {*known} and not renames(names, known):
        return DataError(
            'plain text ("text"), of which no part is named as the reply',
            where=where,
            fix='write each prompt as "instruction" and its reply as "output"',
        )
    return None


def uses_tools(turn: Mapping[str, Any], role: object, ignored: Sequence[str]) -> bool:
    """Whether a turn calls a tool, or is the answer of one."""
    return role in TOOL_ROLES or any(turn.get(key) for key in TOOL_KEYS if key not in ignored)


def _preferences(
    row: Mapping[str, Any],
    chosen: str,
    rejected: str,
    known: Sequence[str],
    ignored: Sequence[str],
    where: str,
) -> DataError:
    """What pairs of a chosen and a rejected reply are, and how they become rows of the chosen."""
    turns = next(
        (key for key in ("conversations", "messages", "prompt") if isinstance(row.get(key), list)),
        None,
    )
    reply, renamed = row[chosen], renames(row, known)
    begins = reply[0] if isinstance(reply, list) and reply else None
    whole = isinstance(begins, dict) and begins.get("role", begins.get("from")) not in REPLIES
    if whole:
        how, used = f'rename "{chosen}" to "messages"', [chosen]
    elif turns:
        end = f'put "{chosen}" at the end of "{turns}"'
        if isinstance(reply, str):
            end += ", as a turn of the assistant"
        how = f'{end}, rename "{turns}" to "messages"' if turns == "prompt" else end
        used = [chosen, turns]
    else:
        renamed = {name: key for name, key in renamed.items() if key != "output"}
        pairs = [f'"{name}" to "{key}"' for name, key in {**renamed, chosen: "output"}.items()]
        how, used = f"rename {' and '.join(pairs)}", [*renamed, chosen]
    kept = {*used, *(() if whole else known)}
    left = ignoring([key for key in row if key not in kept], ignored)
    return DataError(
        f'pairs of a preferred and another reply ("{shorten(chosen)}", "{shorten(rejected)}")',
        where=where,
        fix=f"to train on the preferred ones, {how}, and set {left}",
    )
