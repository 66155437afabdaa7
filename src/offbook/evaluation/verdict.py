"""The verdict: what an evaluation says in words, with the figures it rests on and what to change.

Nothing is said of a difference inside the noise: each finding compares an interval with its limit.
The limit itself may be a share of a measured mean. What the limits are taken from is in
docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from offbook.evaluation.record import Compared, Figure, Finding, Forgetting, Lines, Voice

KINDS = ("did not take", "overfitted", "forgot", "does not stop", "took", "cannot tell")

FEWEST_PROMPTS = 8  # below that, an interval is a guess
GAIN = 0.1  # of the base's loss, that a run has to take off to have learned the lines
IN_VOICE = 0.5  # the least mean probability that a role's replies are the role's
KL_LIMIT = 1.0  # nats per token of general answers
GENERAL_RISE = 0.5  # nats per token that the loss on general answers may rise by
STOPPING = 0.75  # of the replies of a role end by themselves
RISE = 0.02  # of the held-out loss since its lowest point
MEMORIZED = 0.5  # of the held-out loss, that of training rows that are known by heart
FEW_UPDATES = 30  # a role takes more


@dataclass(frozen=True)
class Facts:
    """What a verdict is made of.

    Attributes:
        inert: whether the adapter changes nothing at all.
        updates: optimizer steps; None where they are not known.
        lines, voice, stops, forgetting: what was measured.
    """

    inert: bool
    updates: int | None
    lines: Lines
    forgetting: Forgetting
    voice: Voice | None = None
    stops: Compared | None = None


def find(facts: Facts) -> list[Finding]:
    """The findings, the most serious first; never empty."""
    unlearned = _inert(facts) or _did_not_take(facts)
    forgot = _forgot(facts.forgetting)
    findings: list[Finding | None] = [forgot, _overfitted(facts.lines)]
    if facts.inert or not forgot:  # a broken model sounds like nobody, and may never stop
        findings += [unlearned] if unlearned else [_does_not_stop(facts.stops), _took(facts)]
    found = [finding for finding in findings if finding]
    return sorted(found, key=lambda f: KINDS.index(f.kind)) or [_cannot_tell(facts)]


def _inert(facts: Facts) -> Finding | None:
    if not facts.inert:
        return None
    return Finding(
        "did not take",
        "the adapter is inert: with it, the model computes exactly what the base does",
        "look at the adapter's file: its B matrices are zero, as before the first update, or its "
        "strength is 0",
    )


def _did_not_take(facts: Facts) -> Finding | None:
    loss, voice = facts.lines.loss, facts.voice.probability if facts.voice else None
    gain, needed = -loss.change.value, GAIN * loss.base.value
    because = (
        f"on held-out rows the loss went from {_figure(loss.base)} to {_figure(loss.tuned)} nats "
        f"per token"
    )
    if loss.change.n >= FEWEST_PROMPTS and -loss.change.low < needed:
        because += f", a gain of {gain:.2f}, where {needed:.2f} would be learning the lines"
    elif voice and voice.tuned.n >= FEWEST_PROMPTS and voice.tuned.high < IN_VOICE:
        because += (
            f", but {voice.tuned.n} replies sound more like the base than like the role (their "
            f"probability to be the role's is {_figure(voice.tuned)})"
        )
    else:
        return None
    updates = facts.updates
    if updates is not None and updates < FEW_UPDATES:
        advice = (
            f"{updates} updates are too few: raise train.num_train_epochs, or train.max_steps "
            f"where it is set, so that there are {FEW_UPDATES} or more"
        )
    else:
        advice = "raise train.learning_rate; `auto` fits it to the base"
    return Finding("did not take", because, advice)


def _forgot(forgetting: Forgetting) -> Finding | None:
    kl, rise = forgetting.kl, forgetting.loss.change
    if kl.n < FEWEST_PROMPTS or not (kl.low > KL_LIMIT and rise.low > GENERAL_RISE):
        return None
    return Finding(
        "forgot",
        f"on general answers, KL from the base is {_figure(kl)} nats per token (more than "
        f"{KL_LIMIT:g}), and the loss rose by {_figure(rise)}",
        "lower train.learning_rate, train for fewer epochs, or use the adapter at a lower strength",
    )


def _does_not_stop(stops: Compared | None) -> Finding | None:
    if stops is None or stops.tuned.n < FEWEST_PROMPTS or stops.tuned.high >= STOPPING:
        return None
    return Finding(
        "does not stop",
        f"{stops.tuned.value:.0%} of {stops.tuned.n} replies end by themselves "
        f"({stops.tuned.low:.0%} to {stops.tuned.high:.0%}); of the base's, {stops.base.value:.0%}",
        "see whether the rows end where a reply should: `offbook check` shows the stop token",
    )


def _overfitted(lines: Lines) -> Finding | None:
    held_out, training = lines.loss.tuned, lines.training
    if training is None or held_out.n < FEWEST_PROMPTS:
        return None
    by_heart = training.tuned.high < MEMORIZED * held_out.low
    unlike = training.tuned.value / training.base.value < held_out.value / lines.loss.base.value
    rise = lines.best
    if rise is not None and rise.low > RISE * held_out.value and by_heart:
        return Finding(
            "overfitted",
            f"the held-out loss has risen by {_figure(rise)} nats per token since step "
            f"{lines.best_step}, while training rows are known by heart "
            f"({_figure(training.tuned)}, held-out {_figure(held_out)})",
            "use `--checkpoint best`, or train for fewer epochs",
        )
    if by_heart and unlike:
        return Finding(
            "overfitted",
            f"the loss on training rows is {_figure(training.tuned)} nats per token, on held-out "
            f"ones {_figure(held_out)}: the rows are known by heart",
            "train for fewer epochs, or on more rows",
        )
    return None


def _took(facts: Facts) -> Finding | None:
    loss = facts.lines.loss
    learned = loss.change.n >= FEWEST_PROMPTS and -loss.change.high > GAIN * loss.base.value
    voice = facts.voice.probability if facts.voice else None
    sounds = voice is None or voice.change.n < FEWEST_PROMPTS
    if voice and not sounds:
        sounds = voice.change.low > 0 and voice.tuned.low > IN_VOICE
    if not (learned and sounds):
        return None
    because = (
        f"on {loss.change.n} held-out prompts the loss fell from {loss.base.value:.2f} to "
        f"{loss.tuned.value:.2f} nats per token, by {-loss.change.high:.2f} to "
        f"{-loss.change.low:.2f}"
    )
    if facts.voice and (share := facts.voice.in_voice):
        because += (
            f"; {share.tuned.value:.0%} of the replies sound like the role, of the base's "
            f"{share.base.value:.0%}"
        )
    return Finding("took", because)


def _cannot_tell(facts: Facts) -> Finding:
    loss = facts.lines.loss
    n, needed = loss.change.n, GAIN * loss.base.value
    if n < FEWEST_PROMPTS:
        return Finding(
            "cannot tell",
            f"{n} held-out prompts are too few",
            "hold out more: raise data.validation, or give `offbook eval` other rows with `--data`",
        )
    because = f"on held-out rows the loss changed by {_figure(loss.change)} nats per token"
    if -loss.change.high > needed:
        because += ", but it is not certain that the replies sound like the role"
    else:
        because += f"; a fall of {needed:.2f}, which would be learning the lines, is not certain"
    advice = "name more rows with `--data`, or train longer"
    return Finding("cannot tell", because, advice)


def _figure(figure: Figure) -> str:
    """`2.31 ± 0.12`"""
    return f"{figure.value:.2f} ± {(figure.high - figure.low) / 2:.2f}"
