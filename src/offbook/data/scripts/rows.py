"""Rows of a role from the lines of a script.

Consecutive lines of a speaker in a scene are a turn. Each turn of the role becomes a row: the turns
before it in its scene are the conversation, in which earlier turns of the role are context (weight
0), so that each is trained on once. Where a row has several other speakers, their names are written
before what they say; one alone has no name, as whoever will talk to the role.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from offbook.data.personal import Replacer
from offbook.data.scripts.names import same
from offbook.data.scripts.reading import Kind
from offbook.data.scripts.script import WIDE_CHAR, Line, Speech
from offbook.errors import first_few

CONTEXT = 6  # turns
ROLE = "\0"  # no speaker has this name
UNKNOWN = "someone"  # who speaks, where the script does not tell


class Cast:
    """The speakers of a script, and how many lines each has.

    Attributes:
        lines: by speaker, as first written.
        first: where each speaks first.
        unnamed: lines whose speaker the script does not tell.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.unnamed = 0
        names: dict[str, str] = {}
        for line in lines:
            if not line.speaker:
                self.unnamed += 1
                continue
            name = names.setdefault(same(line.speaker), line.speaker)
            self.lines[name] += 1
            self.first.setdefault(name, line.where)

    def find(self, name: str) -> str | None:
        """The speaker of that name, in capitals or not."""
        return next((known for known in self.lines if same(known) == same(name)), None)


@dataclass
class Made:
    """What became of the role's lines.

    Attributes:
        rows: how many there are.
        unprompted: `file:line` of turns before which nobody says anything in their scene.
        personal: replaces personal data; None to keep it.
    """

    personal: Replacer | None = None
    rows: int = 0
    unprompted: list[str] = field(default_factory=list)

    def of(
        self, lines: Iterable[tuple[Line, Kind]], role: Collection[str], context: int = CONTEXT
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows.

        Args:
            lines: of the script.
            role: the names of the role.
            context: most turns before a reply.
        """
        names = {same(name) for name in role}
        before: deque[Line] = deque(maxlen=context)
        scene = None
        for turn in _turns(lines, names):
            if turn.scene != scene:
                before.clear()
                scene = turn.scene
            if self.personal:
                turn = replace(turn, text=self.personal.replace(turn.text))
            if same(turn.speaker) in names:
                messages = self._messages([*before, turn], names)
                if len(messages) > 1:
                    self.rows += 1
                    yield {"messages": messages, "source": turn.where}
                else:
                    self.unprompted.append(turn.where)
            before.append(turn)

    def notices(self) -> list[str]:
        """What was done to the lines."""
        lines = []
        if self.unprompted:
            times = "once" if len(self.unprompted) == 1 else f"{len(self.unprompted):,} times"
            shown = first_few(self.unprompted, 3)
            lines.append(f"{times}, the role speaks first in a scene, which is no row: {shown}")
        if self.personal and (counts := self.personal.counts):
            shown = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
            lines.append(f"personal data replaced ({shown}); --keep-personal keeps it")
        return lines

    def _messages(self, turns: list[Line], names: Collection[str]) -> list[dict[str, Any]]:
        """The conversation; it begins with what somebody else says."""
        mine = [same(turn.speaker) in names for turn in turns]
        turns = turns[mine.index(False) :] if False in mine else turns[-1:]
        others = {same(turn.speaker) for turn in turns} - set(names)
        messages: list[dict[str, Any]] = []
        for turn in turns:
            if same(turn.speaker) in names:
                messages.append({"role": "assistant", "content": turn.text, "weight": 0})
                continue
            text = self._named(turn) if len(others) > 1 else turn.text
            if messages and messages[-1]["role"] == "user":
                messages[-1]["content"] += f"\n{text}"
            else:
                messages.append({"role": "user", "content": text})
        del messages[-1]["weight"]
        return messages

    def _named(self, turn: Line) -> str:
        name = turn.speaker or UNKNOWN
        if self.personal:
            name = self.personal.replace(name)  # a chat names unknown people by their numbers
        return f"{name}：{turn.text}" if WIDE_CHAR.search(name) else f"{name}: {turn.text}"


def _turns(lines: Iterable[tuple[Line, Kind]], names: Collection[str]) -> Iterator[Line]:
    """Consecutive lines of a speaker, joined. All names of the role are one speaker."""
    last, speech, between = None, Speech("", ""), ""
    for line, kind in lines:
        who = same(line.speaker)
        begins = line.scene, ROLE if who in names else who
        if begins != last:
            if speech.parts:
                yield speech.line(between)
            last, speech, between = (
                begins,
                Speech(line.speaker, line.where, line.scene),
                kind.between,
            )
        speech.parts.append(line.text)
    if speech.parts:
        yield speech.line(between)
