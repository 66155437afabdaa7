"""Replies to held-out prompts, of base and tuned model, and what is heard in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offbook.evaluation.copies import Run, TrainingLines
from offbook.evaluation.figures import compare, compare_shares, figure, share
from offbook.evaluation.record import Compared, Copied, Copy, Reply, Voice
from offbook.evaluation.subject import Progress, Row
from offbook.evaluation.voice import (
    ENOUGH_ACCURACY,
    FEWEST_TEXTS,
    VoiceClassifier,
    cross_validate,
    likeness,
    own_openings,
    repetition,
)
from offbook.inference.pytorch import TorchEngine, WholeReply
from offbook.tokens.examples import IGNORED

LEAST_TOKENS, MOST_TOKENS = 60, 256  # that a reply may have
EXAMPLES = 5  # of copies


@dataclass(frozen=True)
class Heard:
    """What replies say about a model.

    Attributes:
        replies: to held-out prompts.
        voice, stops, copied: what is heard in them.
        classifier: tells the role's voice; None where it is not sure enough to be used.
        limit: most tokens that a reply could have.
    """

    replies: list[Reply]
    voice: Voice
    stops: Compared
    copied: Copied | None
    classifier: VoiceClassifier | None
    limit: int


def listen(
    writer: TorchEngine,
    held_out: Sequence[Row],
    training: Sequence[Row],
    most: int,
    texts: int,
    progress: Progress,
) -> Heard:
    """Let both models answer held-out prompts, and compare what they say.

    Args:
        writer: the model.
        held_out: rows whose prompts are answered.
        training: rows that it was trained on. The base answers some of them too, where held-out
            prompts are too few to know its voice by.
        most: prompts at most.
        texts: replies of the base that the role's voice is told from, at least.
        progress: see `evaluate`.
    """
    rows = list({row.prompt: row for row in held_out}.values())[:most]
    more = list({row.prompt: row for row in training}.values())
    more = more[:: max(len(more) // texts, 1)][: max(texts - len(rows), 0)]
    prompts = [
        writer.template.build_prompt(row.conversation.messages[:-1]) for row in [*rows, *more]
    ]
    limit = reply_limit([*rows, *more])

    def write(what: str, prompts: list[list[int]], base: bool) -> list[WholeReply]:
        progress(what, 0, len(prompts))
        return writer.replies(prompts, limit, base, lambda n: progress(what, n, len(prompts)))

    base = write("replies of the base", prompts, base=True)
    tuned = write("replies of the tuned model", prompts[: len(rows)], base=False)
    lines, others = [row.reply for row in [*rows, *more]], [reply.text for reply in base]
    right = cross_validate(lines, others, [row.prompt for row in [*rows, *more]])
    accuracy = share(right > 0.5, [row.prompt for row in [*rows, *more]] * 2)
    sure = len(lines) >= FEWEST_TEXTS and accuracy.low >= ENOUGH_ACCURACY
    classifier = VoiceClassifier(lines, others) if sure else None
    before, after = others[: len(rows)], [reply.text for reply in tuned]
    in_voice = probability = None
    if classifier:
        # A text of the base that the classifier has learned would always be told right.
        unseen, found = 1 - right[len(lines) :][: len(rows)], classifier.probability(after)
        in_voice = compare_shares(unseen > 0.5, found > 0.5)
        probability = compare(unseen, found)
    references = lines[: len(rows)]
    return Heard(
        replies=[
            Reply(
                row.example.source,
                row.question,
                reference,
                old.text,
                new.text,
                old.stopped,
                new.stopped,
            )
            for row, reference, old, new in zip(rows, references, base, tuned, strict=False)
        ],
        voice=Voice(
            chrf=compare(*(list(map(likeness, texts, references)) for texts in (before, after))),
            accuracy=accuracy,
            in_voice=in_voice,
            length=compare(*(list(map(len, texts)) for texts in (before, after))),
            reference_length=figure(list(map(len, references))),
            openings=compare_shares(*map(own_openings, (before, after))),
            repetition=compare_shares(*(list(map(repetition, t)) for t in (before, after))),
            probability=probability,
        ),
        stops=compare_shares([r.stopped for r in base[: len(rows)]], [r.stopped for r in tuned]),
        copied=_copied(rows, before, after, training) if training else None,
        classifier=classifier,
        limit=limit,
    )


def reply_limit(rows: Sequence[Row]) -> int:
    """Tokens that a reply may have: half as many again as most lines, so that it can end itself."""
    longest = np.quantile([int((row.example.labels != IGNORED).sum()) for row in rows], 0.9)
    return int(np.clip(1.5 * longest, LEAST_TOKENS, MOST_TOKENS))


def _copied(
    rows: Sequence[Row], before: Sequence[str], after: Sequence[str], training: Sequence[Row]
) -> Copied:
    """What of the replies stands in training lines of other prompts."""
    lines = TrainingLines((row.reply, row.example.source) for row in training)
    base, tuned = ([lines.longest_run(text) for text in texts] for texts in (before, after))
    found: list[tuple[Run, Row, str]] = [
        (run, row, text) for run, row, text in zip(tuned, rows, after, strict=True) if run.is_copy
    ]
    found.sort(key=lambda f: -len(f[0].text))
    return Copied(
        share=compare_shares([r.is_copy for r in base], [r.is_copy for r in tuned]),
        longest=compare([len(r.text) for r in base], [len(r.text) for r in tuned]),
        examples=[
            Copy(row.question, text, run.text, run.source) for run, row, text in found[:EXAMPLES]
        ],
    )
