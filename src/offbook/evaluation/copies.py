"""Did it copy: long runs of training lines in replies to other prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

RUN = {"words": 40, "characters": 16}  # of a copy, in characters: of a script with spaces, without
PIECE = 8  # characters by which lines are found
PLACES = 64  # of a piece that are compared
FORMULA = 3  # lines with the same run: that is how the role speaks, and not a copy of a line


class Run(NamedTuple):
    """The longest run of characters that a text has in common with a line.

    Attributes:
        text: the run.
        source: `file:line` of the line; empty where nothing is in common.
        lines: how many lines have it.
    """

    text: str = ""
    source: str = ""
    lines: int = 0

    @property
    def is_copy(self) -> bool:
        """Whether it is too long for chance, and not a formula of the role."""
        kind = "words" if " " in self.text.strip() else "characters"
        return len(self.text) >= RUN[kind] and self.lines < FORMULA


class TrainingLines:
    """Lines in which runs are found.

    Args:
        lines: the text and the `file:line` of each.
    """

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        self._lines: list[tuple[str, str]] = []
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for text, source in lines:
            clean = " ".join(text.split())
            for at in range(len(clean) - PIECE + 1):
                places = self._places[clean[at : at + PIECE]]
                if len(places) < PLACES:
                    places.append((len(self._lines), at))
            self._lines.append((clean, source))

    def longest_run(self, reply: str) -> Run:
        """The longest run of a reply that a line has too."""
        clean = " ".join(reply.split())
        text = source = ""
        for at in range(len(clean) - PIECE + 1):
            for line, start in self._places.get(clean[at : at + PIECE], ()):
                words, its_source = self._lines[line]
                size = _common(clean[at:], words[start:])
                if size > len(text):
                    text, source = clean[at : at + size], its_source
        return Run(text, source, sum(text in words for words, _ in self._lines) if text else 0)


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    most = min(len(a), len(b))
    return next((k for k in range(most) if a[k] != b[k]), most)
