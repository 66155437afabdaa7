"""Rows that are equal to earlier ones, and prompts that have several replies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from offbook.doctor.findings import Finding, Hit
from offbook.doctor.row import Row


class Repeats:
    """Finds duplicates and conflicting replies by 8-byte hashes of the texts."""

    def __init__(self) -> None:
        self.duplicates: list[Hit] = []
        self._first: dict[int, int] = {}  # hash of a row: the number of the first that has it
        self._sources: list[str] = []
        # Hash of what comes before the first reply: the first row with it. A prompt that has a
        # second reply is in `_open` with all rows that have another reply than the first.
        self._prompts: dict[int, int] = {}
        self._open: dict[int, list[Hit]] = {}

    def see(self, row: Row) -> None:
        """Look at a row."""
        self._sources.append(row.conversation.source)
        key = int.from_bytes(row.conversation.key, "little")
        first = self._first.setdefault(key, row.number)
        if first != row.number:
            self.duplicates.append(row.hit(like=self._sources[first]))
            return
        prompt = _asked(row)
        asked_first = self._prompts.setdefault(prompt, row.number)
        if asked_first != row.number:
            self._open.setdefault(prompt, []).append(row.hit(like=self._sources[asked_first]))

    @property
    def open_prompts(self) -> int:
        """How many prompts have more than one reply."""
        return len(self._open)

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """Duplicates, and prompts with several replies."""
        yield Finding.of("duplicate", self.duplicates), self.duplicates
        firsts = [hits[0] for hits in self._open.values()]
        rows = [hit for hits in self._open.values() for hit in hits]
        yield Finding.of("conflict", firsts), rows


def _asked(row: Row) -> int:
    """A hash of all that comes before the first reply; white space and case make no difference."""
    before = row.conversation.messages[: row.conversation.replies[0]]
    text = "\0".join(" ".join(m.content.split()).casefold() for m in before)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
