"""Replies to held-out prompts, of base and tuned model, and what is heard in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offbook.evaluation.copies import Run, TrainingLines
from offbook.evaluation.figures import compare, compare_shares, figure, share
from offbook.evaluation.record import Compared, Copied, Copy, Reply, Voice
from offbook.evaluation.subject import Progress, Row, prompts_of
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
from offbook.tokens.examples import supervised_spans
from offbook.tokens.template import ChatTemplate

LEAST_TOKENS, MOST_TOKENS = 60, 256  # that a reply may have
EXAMPLES = 5  # of copies


@dataclass(frozen=True)
class Heard:
    """What replies say about a model.

    Attributes:
        replies: to held-out prompts.
        unanswered: held-out prompts that leave no room for a reply in the context.
        voice, stops, copied: what is heard in them; None where there are none.
        classifier: tells the role's voice; None where it is not sure enough to be used.
    """

    replies: list[Reply]
    unanswered: int
    voice: Voice | None = None
    stops: Compared | None = None
    copied: Copied | None = None
    classifier: VoiceClassifier | None = None


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
    limit = reply_limit([*rows, *more], writer.context)
    room = None if writer.context is None else writer.context - limit
    held, added = (_prompts(writer.template, some, room) for some in (rows, more))
    unanswered = len(rows) - len(held)
    if not held:
        return Heard([], unanswered)
    rows, asked = [row for row, _ in held], [row for row, _ in [*held, *added]]
    prompts = [ids for _, ids in [*held, *added]]

    def write(what: str, prompts: list[list[int]], base: bool) -> list[WholeReply]:
        progress(what, 0, len(prompts))
        return writer.replies(prompts, limit, base, lambda n: progress(what, n, len(prompts)))

    base = write("replies of the base", prompts, base=True)
    tuned = write("replies of the tuned model", prompts[: len(rows)], base=False)
    lines, others = [row.reply for row in asked], [reply.text for reply in base]
    before, after = others[: len(rows)], [reply.text for reply in tuned]
    right = cross_validate(lines, others, prompts_of(asked), after)
    accuracy = share(right[: 2 * len(lines)] > 0.5, prompts_of(asked) * 2)
    sure = len(lines) >= FEWEST_TEXTS and accuracy.low >= ENOUGH_ACCURACY
    classifier = VoiceClassifier(lines, others) if sure else None
    in_voice = probability = None
    if classifier:
        # Both by a classifier that has not seen the prompt: one that has would know its replies.
        old, new = (1 - right[len(lines) * k :][: len(rows)] for k in (1, 2))
        in_voice = compare_shares(old > 0.5, new > 0.5)
        probability = compare(old, new)
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
        unanswered=unanswered,
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
    )


def reply_limit(rows: Sequence[Row], context: int | None) -> int:
    """Tokens that a reply may have: half as many again as most lines, so that it can end itself.

    It is at most half of the context.
    """
    spans = [supervised_spans(row.example.labels)[-1] for row in rows]
    longest = np.quantile([end - begin for begin, end in spans], 0.9)
    limit = int(np.clip(1.5 * longest, LEAST_TOKENS, MOST_TOKENS))
    return limit if context is None else min(limit, context // 2)


def prompt_within(template: ChatTemplate, row: Row, room: int | None) -> list[int] | None:
    """A row's prompt, without the oldest exchanges for which there is no room, as in a chat.

    Args:
        template: of the model.
        row: asks with what its example has before the reply.
        room: most tokens; None for no limit.

    Returns:
        Its tokens; None where the last question alone has more.
    """
    ids, messages = row.prompt_ids, row.conversation.messages[:-1]
    system = messages[: messages[0].role == "system"]
    turns = messages[len(system) :]
    while room is not None and len(ids) > room:
        turns = turns[2:]
        if not turns:
            return None
        ids = template.build_prompt([*system, *turns])
    return ids


def _prompts(
    template: ChatTemplate, rows: Sequence[Row], room: int | None
) -> list[tuple[Row, list[int]]]:
    """The rows whose prompts fit, with them."""
    prompts = [(row, prompt_within(template, row, room)) for row in rows]
    return [(row, ids) for row, ids in prompts if ids]


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
