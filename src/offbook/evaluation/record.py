"""What an evaluation found: the contents of `evaluation.json`.

Everything is told of the base and of the tuned model side by side. Each figure has its 95% interval
and the number of prompts that it rests on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from offbook.files.strict_json import to_json
from offbook.runs.records import read_record


@dataclass(frozen=True)
class Figure:
    """A mean over rows.

    Attributes:
        value: the mean.
        low, high: its 95% interval, by a bootstrap over prompts; infinite for a single prompt,
            which is null in the file.
        n: how many prompts it rests on; rows with the same prompt count once.
    """

    value: float
    low: Annotated[float, BeforeValidator(lambda low: -math.inf if low is None else low)]
    high: Annotated[float, BeforeValidator(lambda high: math.inf if high is None else high)]
    n: int


@dataclass(frozen=True)
class Compared:
    """A figure of the base and of the tuned model, on the same rows.

    Attributes:
        base, tuned: of each.
        change: tuned minus base, row by row.
    """

    base: Figure
    tuned: Figure
    change: Figure


@dataclass(frozen=True)
class Lines:
    """Did it learn the lines? Losses on rows, without generating anything.

    Attributes:
        loss: nats per supervised token, on held-out rows.
        bits: bits per byte of the replies, on held-out rows.
        training: nats per supervised token, on some of the training rows; None where there are
            none to read.
        best: what the held-out loss has risen by since the checkpoint where it was lowest; None
            where that is the last one, or is not kept.
        best_step: optimizer steps of that checkpoint.
    """

    loss: Compared
    bits: Compared
    training: Compared | None = None
    best: Figure | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Voice:
    """Does it sound like the role? Replies to held-out prompts.

    Attributes:
        chrf: character n-gram F-score against the reference, 0 to 100 (Popović 2015).
        accuracy: how often the voice classifier is right about replies that it was not trained on;
            it tells the role's lines from the base's own replies to the same prompts.
        in_voice: share of replies that the classifier takes for the role's; None where its
            accuracy is too low to say so.
        length: characters of a reply.
        reference_length: characters of a reference.
        openings: share of replies that do not begin like another one (first three words).
        repetition: share of the word 4-grams of a reply that it has had before.
        probability: that a reply is the role's, by the classifier. It tells more than `in_voice`,
            where there are few replies.
    """

    chrf: Compared
    accuracy: Figure
    in_voice: Compared | None
    length: Compared
    reference_length: Figure
    openings: Compared
    repetition: Compared
    probability: Compared | None = None


@dataclass(frozen=True)
class Probe:
    """A question about what the model is.

    Attributes:
        language: `en` or `zh`.
        question: it was asked.
        base, tuned: the replies.
        base_leaks, tuned_leaks: whether the reply says that it comes from a model or its maker.
    """

    language: str
    question: str
    base: str
    tuned: str
    base_leaks: bool
    tuned_leaks: bool


@dataclass(frozen=True)
class InRole:
    """Does it stay in role?

    Attributes:
        leaks: share of the probes that give the model away.
        probes: the probes.
        drill: for each turn of one long conversation, the probability that the classifier gives to
            the role; empty where its accuracy is too low.
        drift: the mean of the later half of those turns, minus that of the first half; its `n`
            is the number of pairs of turns.
    """

    leaks: Compared
    probes: list[Probe]
    drill: list[float] = field(default_factory=list)
    drift: Figure | None = None


@dataclass(frozen=True)
class Copy:
    """A reply that repeats a training line.

    Attributes:
        question: it was asked.
        reply: that has the text.
        text: what is copied, the longest run.
        source: `file:line` of the training row.
    """

    question: str
    reply: str
    text: str
    source: str


@dataclass(frozen=True)
class Copied:
    """Did it copy? Training lines in replies to other prompts.

    Attributes:
        share: of the replies that repeat a long run of a training line.
        longest: characters of the longest run of a training line in a reply.
        examples: the longest, first.
    """

    share: Compared
    longest: Compared
    examples: list[Copy]


@dataclass(frozen=True)
class Forgetting:
    """Did it forget? On general questions and answers, that have nothing to do with the role.

    Attributes:
        kl: KL(base ‖ tuned) per token of the general answers, in nats.
        loss: nats per token of the general answers.
        prompts_kl: KL(base ‖ tuned) per supervised token of the held-out rows, in nats.
        in_voice: share of generated answers to general questions that the classifier takes for the
            role's; None where it cannot tell, or nothing was generated. Told, not judged.
    """

    kl: Figure
    loss: Compared
    prompts_kl: Figure
    in_voice: Compared | None = None


@dataclass(frozen=True)
class Reply:
    """A held-out prompt with its replies.

    Attributes:
        source: `file:line` of the row.
        question: the last user turn.
        reference: the role's own line.
        base, tuned: the generated replies.
        base_stopped, tuned_stopped: whether the model ended the reply itself.
    """

    source: str
    question: str
    reference: str
    base: str
    tuned: str
    base_stopped: bool
    tuned_stopped: bool


@dataclass(frozen=True)
class AtStrength:
    """The adapter at one strength.

    Attributes:
        strength: what its output is multiplied by.
        loss: nats per supervised token on held-out rows.
        kl: KL(base ‖ tuned) per token of the general answers, in nats.
    """

    strength: float
    loss: Figure
    kl: Figure


@dataclass(frozen=True)
class LedgerRow:
    """A training row, and what the training did to it.

    Attributes:
        source: its `file:line`.
        question, reply: its text, shortened.
        tokens: how many are supervised.
        base: loss under the base, in nats per token.
        first: loss when it was first trained on, just before that update; None where it was not,
            or an older version trained the run.
        tuned: loss under the result.
        remark: `never learned`, `memorized first`, `contradicts FILE:LINE`, `repeats FILE:LINE`, or
            empty.
    """

    source: str
    question: str
    reply: str
    tokens: int
    base: float
    first: float | None
    tuned: float
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that an evaluation says.

    Attributes:
        kind: `took`, `did not take`, `overfitted`, `forgot`, `does not stop`, or `cannot tell`.
        because: the figures it rests on, in words.
        advice: what to change; empty where nothing needs to be.
    """

    kind: str
    because: str
    advice: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found. What was not measured is None or empty.

    Attributes:
        findings: the verdict, the most serious first; never empty.
        subject: what was evaluated: `result`, or `step N` of the run.
        step: optimizer steps of the adapter; None where that is not known.
        strength: of the adapter.
        adapter: SHA-256 of its weights, by which an evaluation of other weights is known.
        lines, voice, in_role, stops, copied, forgetting: the answers to six questions.
        replies: the generated ones.
        unanswered: held-out prompts that have none, since they leave no room in the context.
        strengths: the adapter at other strengths.
        best_strength: the best trade-off between role and forgetting; None with too few prompts.
        ledger: the training rows that are worth a look, the worst first.
        seconds: the evaluation took.
        short: whether it was the short form, which is made after each training.
        versions: of what computed.
    """

    findings: list[Finding]
    subject: str
    step: int | None
    strength: float
    lines: Lines
    forgetting: Forgetting
    voice: Voice | None = None
    in_role: InRole | None = None
    stops: Compared | None = None
    copied: Copied | None = None
    replies: list[Reply] = field(default_factory=list)
    unanswered: int = 0
    strengths: list[AtStrength] = field(default_factory=list)
    best_strength: float | None = None
    ledger: list[LedgerRow] = field(default_factory=list)
    seconds: float = 0.0
    short: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    adapter: str = ""

    @property
    def verdict(self) -> str:
        """The kind of the most serious finding."""
        return self.findings[0].kind

    @classmethod
    def read(cls, file: Path) -> Evaluation:
        """The evaluation in a file, as `read_record`."""
        return read_record(cls, file, fix="remove it, and evaluate the run again")

    def to_json(self) -> bytes:
        """The contents of the file."""
        return f"{to_json(asdict(self), indent=1)}\n".encode()
