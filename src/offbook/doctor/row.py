"""A conversation as the checks see it: prompts and the replies to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from offbook.data.messages import Conversation
from offbook.doctor.findings import Finding, Hit

LETTERS = re.compile(r"[^\W\d_]")
WORDS = re.compile(r"[^\W\d_]+")
# Written without spaces: Chinese characters, kana.
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation, with what is asked of all of them.

    Attributes:
        number: of the row in the data set, from 0.
        conversation: what it says.
        pairs: each reply that is trained on, after the prompt before it.
    """

    number: int
    conversation: Conversation
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, number: int, conversation: Conversation) -> Row:
        """The row with this number."""
        texts = conversation.messages
        pairs = tuple((texts[k - 1].content, texts[k].content) for k in conversation.replies)
        return cls(number, conversation, pairs)

    def hit(self, detail: str = "") -> Hit:
        """This row, with something found in it."""
        return Hit(self.number, self.conversation.source, detail)


class Check(Protocol):
    """Looks at all rows, one after another, and then says what it has found.

    `findings` yields each finding with all of its rows.
    """

    def see(self, row: Row) -> None:
        """Look at a row."""

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """What was found; called once, after the last row."""
