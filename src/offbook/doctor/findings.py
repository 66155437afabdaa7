"""What can be wrong in a data set: each kind, how serious it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from offbook.errors import first_few, quoted, shorten

Severity = Literal["fix", "look", "note"]
SEVERITIES: tuple[Severity, ...] = ("fix", "look", "note")  # the most serious first
PLACES, SHOWN = 20, 3  # of a finding that are kept with it, and in a line about it


class Hit(NamedTuple):
    """A row with something wrong.

    Attributes:
        row: its number in the data set, from 0.
        source: its `file:line`.
        detail: what was found in it.
        like: the `file:line` of the row that it is like.
        like_row: the number of that row.
    """

    row: int
    source: str
    detail: str = ""
    like: str = ""
    like_row: int = -1

    @property
    def why(self) -> str:
        """What was found, in words."""
        return f"like {self.like}" if self.like else self.detail


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: `fix` for what is nearly always a fault, `look` for what a person should look at,
            `note` for what is good to know.
        what: what is counted, with `{name}` for values of a finding.
        todo: what to do about it.
    """

    severity: Severity
    what: str
    todo: str


KINDS: Mapping[str, Kind] = {
    "duplicate": Kind(
        "fix",
        "rows equal to an earlier one",
        "remove them: each copy counts once more in training",
    ),
    "near_duplicate": Kind(
        "fix",
        "rows nearly equal to an earlier one",
        "remove them, unless the small difference matters",
    ),
    "boilerplate": Kind(
        "fix",
        "replies in the words of an assistant",
        "write what the role would say, or remove the rows",
    ),
    "placeholder": Kind(
        "fix",
        "rows with a placeholder",
        "fill in what belongs there, or remove the rows",
    ),
    "empty_cell": Kind(
        "fix",
        "rows with “nan” or the like in place of an empty input or system text",
        "leave it empty: the model reads it as a part of the prompt",
    ),
    "no_answer": Kind(
        "fix",
        "replies of reasoning without an answer",
        "write the answer after </think>, or remove the rows: the role learns to stop there",
    ),
    "garbled": Kind(
        "fix",
        "rows with control characters, or text that was decoded wrongly",
        "read the text in its own encoding, or remove the rows",
    ),
    "control_text": Kind(
        "fix",
        "rows with control text of a chat template",
        "remove it: the base's template writes its own, and this is trained on as plain text",
    ),
    "swapped": Kind(
        "fix",
        "rows in which the speakers seem to be swapped",
        "let the prompt be what is said to the role, and the reply what the role says",
    ),
    "personal": Kind(
        "fix",
        "rows with personal data",
        "replace it: a model repeats what it was trained on",
    ),
    "conflict": Kind(
        "look",
        "prompts with several replies",
        "keep them where the role may answer either way, else keep the best reply",
    ),
    "model": Kind(
        "look",
        "replies that speak of a language model or its maker",
        "remove the rows, unless the role knows of it",
    ),
    "empty_prompt": Kind(
        "look",
        "prompts without a word",
        "write what the reply answers, or remove the rows",
    ),
    "unfinished": Kind(
        "look",
        "replies that end in the middle of a sentence",
        "complete them: the role learns to stop there",
    ),
    "length": Kind(
        "look",
        "replies far longer or shorter than the others (median {median} characters)",
        "see whether they belong to the role",
    ),
    "language": Kind(
        "look",
        "replies in another script than {share} of them",
        "remove or translate them, unless the role speaks both languages",
    ),
    "silent_role": Kind(
        "look",
        "rows with lines of “{name}”, the role by the system text, in the prompts and not in a "
        "reply",
        "let the lines of the role be the replies",
    ),
    "dropped": Kind(
        "look",
        "replies left out because longer than {limit} tokens alone",
        "{keep}",
    ),
    "truncated": Kind(
        "look",
        "prompts that lose their beginning to fit in {limit} tokens",
        "{keep}",
    ),
    "unknown_language": Kind(
        "look",
        "the replies take {ratio} tokens per character: this base hardly knows their language",
        "rows do not teach it; set model.base to one that was trained on it",
    ),
    "divided": Kind(
        "note",
        "conversations cut to fit in {limit} tokens",
        "nothing is lost but a part of what came before a reply; {keep}",
    ),
    "trimmed": Kind(
        "note",
        "replies from which the chat template removes outer white space",
        "nothing",
    ),
    "opening": Kind(
        "note",
        "replies that begin with “{text}” ({share})",
        "nothing, if the role speaks so: it is learned as the way to begin",
    ),
    "ending": Kind(
        "note",
        "replies that end with “{text}” ({share})",
        "nothing, if the role speaks so: it is learned as the way to end",
    ),
    "two_languages": Kind(
        "note",
        "replies in another script than most of them ({share})",
        "see that the base knows both languages",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something wrong or odd in a data set.

    Attributes:
        kind: a key of `KINDS`.
        count: how many rows, replies or prompts it is about; 0 where that is all of them.
        hits: the first of them.
        values: for the texts of the kind.
    """

    kind: str
    count: int
    hits: tuple[Hit, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, hits: Sequence[Hit], **values: str) -> Finding:
        """A finding about these rows."""
        return cls(kind, len(hits), tuple(hits[:PLACES]), values)

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def what(self) -> str:
        return KINDS[self.kind].what.format(**self.values)

    @property
    def todo(self) -> str:
        return KINDS[self.kind].todo.format(**self.values)

    @property
    def places(self) -> str:
        """`rows.json:14 (rows.json:9), ...`: the first places, without folders; empty if none."""
        names = [
            Path(hit.source).name
            + (f" ({Path(hit.like).name})" if hit.like else "")
            + (f" ({shorten(hit.detail)})" if hit.detail else "")
            for hit in self.hits[:SHOWN]
        ]
        more = self.count - len(names)
        return ", ".join(names) + (f", and {more:,} more" if names and more else "")

    def describe(self) -> str:
        """The finding in a line, with the first places."""
        count = f": {self.count:,}" if self.count else ""
        return f"{self.what}{count}" + (f", at {self.places}" if self.hits else "")

    def as_dict(self) -> dict[str, object]:
        """The finding as `check --json` prints it."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "what": self.what,
            "todo": self.todo,
            "places": [{"source": hit.source, "why": hit.why} for hit in self.hits],
        }


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, the most serious first."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind)))


def brief(findings: Iterable[Finding], sources: Iterable[str]) -> str | None:
    """The more serious findings in a line, for the start of a training; None where there are none.

    Args:
        findings: about the rows.
        sources: what the places of the rows are called on the command line.
    """
    serious = [f"{f.what}: {f.count:,}" for f in at_least("look", in_order(findings)) if f.count]
    if not serious:
        return None
    command = " ".join(["offbook check", *map(quoted, sources)])
    return f"{first_few(serious, 3, '; ')}; more with `{command}`"


def at_least(severity: Severity, findings: Iterable[Finding]) -> list[Finding]:
    """The findings that are as serious as `severity`, or more so."""
    serious = SEVERITIES[: SEVERITIES.index(severity) + 1]
    return [finding for finding in findings if finding.severity in serious]
