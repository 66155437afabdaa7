"""The keys of a data set that no row format has, counted for one message about all of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from offbook.errors import MAX_QUOTED, DataError, first_few, shorten, suggest

FIRST_KEYS = ("instruction", "conversations", "messages")  # each tells a row format
MAX_KEYS = 200  # more than that are no columns, but data

# What other formats call the keys of these.
OTHER_NAMES = {
    "prompt": "instruction",
    "question": "instruction",
    "query": "instruction",
    "response": "output",
    "answer": "output",
    "completion": "output",
    "reply": "output",
    "target": "output",
    "system_prompt": "system",
    "context": "input",
    "text": "content",
    "thinking": "reasoning_content",
    "thought": "reasoning_content",
    "conversation": "conversations",
    "message": "messages",
    "role": "from",
    "from": "role",
    "content": "value",
    "value": "content",
}


@dataclass
class _Key:
    """One unknown key: where it is first, in how many rows, and which known key may be meant."""

    where: str
    meant: str | None
    in_turns: bool
    other_format: bool
    rows: int = 0
    last: str = ""
    filled: bool = False


class UnknownKeys:
    """Collects unknown keys; those that are empty in every row are no error."""

    def __init__(self, ignored: Sequence[str]) -> None:
        self._ignored = tuple(ignored)
        self._keys: dict[str, _Key] = {}
        self.filled = self.too_many = False

    def check(
        self, record: Mapping[str, object], known: Sequence[str], where: str, in_turns: bool = False
    ) -> bool:
        """Count the unknown keys of a row or turn; returns whether any of them has a value."""
        found = False
        for name, value in record.items():
            if name in known or name in self._ignored:
                continue
            if name not in self._keys:
                if len(self._keys) == MAX_KEYS:
                    self.too_many = found = True
                    continue
                missing = [key for key in known if key not in record]
                other = name in FIRST_KEYS and known[0] in missing
                near = None if other else meant(name, missing)
                self._keys[name] = _Key(where, near, in_turns, other)
            key = self._keys[name]
            key.rows += key.last != where
            key.last = where
            if not _is_empty(value):
                if not key.filled:
                    key.filled, key.where = True, where
                    self.filled = True
                found = True
        return found

    def errors(self) -> list[DataError]:
        """What is wrong with the keys that have a value in any row."""
        return list(self._errors({name: key for name, key in self._keys.items() if key.filled}))

    def empty(self) -> Iterator[tuple[str, str]]:
        """A remark for each key that is empty in every row, and its first place."""
        for name, key in self._keys.items():
            if not key.filled:
                yield f'the key "{shorten(name)}" is empty in every row, and ignored', key.where

    def _errors(self, filled: Mapping[str, _Key]) -> Iterator[DataError]:
        others = []
        for name, key in filled.items():
            if key.meant or key.other_format or len(name) > MAX_QUOTED:
                fix = f'did you mean "{key.meant}"?' if key.meant else "remove it"
                if key.other_format:
                    fix = "put rows of another format into a file of their own"
                what = f"unknown key {_quoted(name, key)}{_count(key.rows)}"
                yield DataError(what, where=key.where, fix=fix)
            else:
                others.append(name)
        if others:
            first = filled[others[0]].where
            shown = first_few([_quoted(name, filled[name], first) for name in others], 10)
            what = f"unknown key{'s' * (len(others) > 1)} {shown}"
            what += _count(max(filled[name].rows for name in others))
            fix = (
                f"skip {'them' if len(others) > 1 else 'it'} with {ignoring(others, self._ignored)}"
            )
            if self.too_many:
                fix = "remove them from the rows; there are too many to name"
            yield DataError(what, where=first, fix=fix)


def ignoring(names: Iterable[str], ignored: Iterable[str]) -> str:
    """`'data.ignore_keys=[...]'` for a command line, with what is ignored already."""
    every = list(dict.fromkeys([*ignored, *names]))
    listed = f"[{','.join(every)}]"
    if not all(re.fullmatch(r"\w[\w.-]*", name) for name in every) or not _is_yaml(listed, every):
        listed = yaml.safe_dump(every, default_flow_style=True, allow_unicode=True, width=10**6)
    return shlex.quote(f"data.ignore_keys={listed.strip()}")


def _is_yaml(text: str, value: object) -> bool:
    try:
        return bool(yaml.safe_load(text) == value)
    except (yaml.YAMLError, ValueError):
        return False  # such as 2024-99-99, which is no date


def renames(names: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """The known keys that the names of another format stand for."""
    found = {name: OTHER_NAMES.get(name.casefold(), name.casefold()) for name in names}
    return {name: key for name, key in found.items() if key in known and key != name}


def meant(name: str, missing: Sequence[str]) -> str | None:
    """The missing key that `name` may stand for."""
    other = OTHER_NAMES.get(name.casefold())
    if other in missing:
        return other
    near = suggest(name, missing)
    return near.removeprefix('did you mean "').removesuffix('"?') if near else None


def _quoted(name: str, key: _Key, first: str | None = None) -> str:
    place = f" (from {key.where})" if first not in (None, key.where) else ""
    return f'"{shorten(name)}"' + " of a turn" * key.in_turns + place


def _is_empty(value: object) -> bool:
    """Whether a value says nothing; Parquet writes an object without values as one of nulls."""
    values = value.values() if isinstance(value, dict) else [value]
    return all(part in (None, "", [], {}) for part in values)


def _count(rows: int) -> str:
    return f" in {rows:,} rows" if rows > 1 else ""
