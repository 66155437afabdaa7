"""Who speaks: rows whose speakers are swapped, and a role whose lines are in the prompts."""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from offbook.doctor.findings import Finding, Hit
from offbook.doctor.row import Row
from offbook.doctor.shape import FEWEST_ROWS, ending, opening

MARK = 0.3  # of the replies begin, or end, alike: so the role can be told by it
NO_MARK = zlib.crc32(b"")
USER = re.compile(r"\s*(?:user|human|customer|用户|提问者?)\s*[:：]", re.IGNORECASE)
ASSISTANT = re.compile(r"\s*(?:assistant|chat ?bot|ai|助手|助理)\s*[:：]", re.IGNORECASE)
ROLE = re.compile(
    r"\b(?i:you are|you're|act as|play|pretend to be|speak as)(?i: the role of)? "
    r"((?!I\b|AI\b)[A-Z][\w'’-]+(?: [A-Z][\w'’-]+){0,3})"
    r"|(?:你是|你叫|你就是|扮演|饰演)[“「《]?([\u4e00-\u9fff·]{2,8}?)(?:[”」》，。,；;！!\s]|$)"
)


class Speakers:
    """Compares prompts with how the role's replies begin and end, and reads labels of speakers."""

    def __init__(self) -> None:
        self._sources: list[str] = []
        self._labelled: list[Hit] = []
        self._silent: dict[str, list[Hit]] = {}
        # Hashes of how each row's prompt and reply begin and end, four for each row.
        self._marks = array("I")

    def see(self, row: Row) -> None:
        """Look at a row."""
        prompt, reply = row.pairs[-1]
        self._sources.append(row.conversation.source)
        for text in (prompt, reply):
            for end in (opening(text), ending(text)):
                self._marks.append(zlib.crc32(end.encode()))
        label = USER.match(reply) or (not ASSISTANT.match(reply) and ASSISTANT.match(prompt))
        if label:
            self._labelled.append(row.hit(label[0].strip()))
        first = row.conversation.messages[0]
        if first.role == "system" and (role := _role_of(first.content)):
            name, line = role
            if any(m.role == "user" and line.search(m.content) for m in row.conversation.messages):
                self._silent.setdefault(name, []).append(row.hit())

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """Swapped rows, and the lines of a role that are in the prompts."""
        swapped = {hit.row: hit for hit in (*self._by_marks(), *self._labelled)}
        hits = [swapped[row] for row in sorted(swapped)]
        yield Finding.of("swapped", hits), hits
        for name, silent in self._silent.items():
            yield Finding.of("silent_role", silent, name=name), silent

    def _by_marks(self) -> Iterator[Hit]:
        """Rows whose prompt begins or ends as the role's replies do, and whose reply does not."""
        marks = np.frombuffer(self._marks, dtype=np.uint32).reshape(-1, 4)
        if len(marks) < FEWEST_ROWS:
            return
        in_prompt, in_reply = np.zeros((2, len(marks)), dtype=bool)
        for end in (0, 1):
            mark = _usual(marks[:, 2 + end])
            if mark is not None:
                in_prompt |= marks[:, end] == mark
                in_reply |= marks[:, 2 + end] == mark
        for row in np.flatnonzero(in_prompt & ~in_reply).tolist():
            yield Hit(row, self._sources[row])


def _usual(marks: NDArray[np.uint32]) -> int | None:
    """The hash that a large share of all have, if any."""
    values, counts = np.unique(marks[marks != NO_MARK], return_counts=True)
    if not len(values) or counts.max() < MARK * len(marks):
        return None
    return int(values[counts.argmax()])


@lru_cache(maxsize=1000)
def _role_of(system: str) -> tuple[str, re.Pattern[str]] | None:
    """The role that a system text names, and a pattern of a line with its name before it."""
    found = ROLE.search(system)
    if not found:
        return None
    name = found[1] or found[2]
    names = "|".join(re.escape(part) for part in {name, *name.split()} if len(part) > 1)
    return name, re.compile(rf"^\W{{0,3}}(?:{names})\s?[:：]", re.MULTILINE | re.IGNORECASE)
