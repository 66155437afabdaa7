"""All checks of a data set, while it is streamed to the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from offbook.data.messages import Conversation
from offbook.doctor.findings import Finding, Hit, in_order
from offbook.doctor.leftovers import Leftovers
from offbook.doctor.repeats import Repeats
from offbook.doctor.row import Check, Row
from offbook.doctor.shape import Shape
from offbook.doctor.similar import Similar
from offbook.doctor.speakers import Speakers
from offbook.settings.sections import DoctorSettings


class Doctor:
    """Looks at conversations while they are used for something else.

    Args:
        settings: thresholds, and what not to look for.
        most: rows that are looked at; by default, all.

    Attributes:
        rows: how many conversations were looked at.
        replies: how many replies they have that are trained on.
        hits: the rows of each kind of finding; filled by `findings`.
    """

    def __init__(self, settings: DoctorSettings, most: int | None = None) -> None:
        self.rows = self.replies = 0
        self._most = most
        self.hits: dict[str, list[Hit]] = {}
        self._settings = settings
        self._similar = Similar(settings.near_duplicate)
        self._checks: list[Check] = [
            Repeats(),
            Leftovers(),
            Speakers(),
            self._similar,
            Shape(settings),
        ]

    def watch(self, conversations: Iterable[Conversation]) -> Iterator[Conversation]:
        """Look at the conversations while yielding them unchanged.

        One that is yielded several times in a row, as where rows are repeated, is looked at once.
        """
        previous = None
        for conversation in conversations:
            more = self._most is None or self.rows < self._most
            if more and conversation is not previous:
                previous = conversation
                row = Row.of(self.rows, conversation)
                self.rows += 1
                self.replies += len(row.pairs)
                for check in self._checks:
                    check.see(row)
            yield conversation

    def counts(self, findings: Iterable[Finding]) -> dict[str, int]:
        """The numbers by name, with those of two kinds of findings."""
        found = {finding.kind: finding.count for finding in findings}
        return {
            "rows": self.rows,
            "replies": self.replies,
            "duplicates": found.get("duplicate", 0),
            "open_prompts": found.get("conflict", 0),
        }

    def findings(
        self, again: Iterable[Conversation], others: Iterable[Finding] = ()
    ) -> list[Finding]:
        """What was found, the most serious first.

        Args:
            again: the same conversations, from the first; read only where some may be nearly equal.
            others: findings that were made elsewhere, such as `token_findings`.
        """
        found = list(others)
        for check in self._checks:
            if check is self._similar:
                self._see_again(again)
            for finding, hits in check.findings():
                if finding.count:
                    found.append(finding)
                    self.hits.setdefault(finding.kind, []).extend(hits)
        for kind in self._settings.ignore:
            self.hits.pop(kind, None)
        return in_order(f for f in found if f.kind not in self._settings.ignore)

    def _see_again(self, conversations: Iterable[Conversation]) -> None:
        """Look once more at rows that may be nearly equal, and are not known to be equal."""
        wanted = self._similar.wanted({hit.row for hit in self.hits.get("duplicate", ())})
        last = max(wanted, default=-1)
        for number, conversation in zip(range(last + 1), once(conversations), strict=False):
            if number in wanted:
                self._similar.see_again(Row.of(number, conversation))


def once(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    """Conversations, without those that are yielded again right away."""
    previous = None
    for conversation in conversations:
        if conversation is not previous:
            yield conversation
        previous = conversation
