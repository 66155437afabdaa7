"""Each fault has its verdict, a healthy run has none of them, and noise has none at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from offbook.evaluation.record import Compared, Figure, Forgetting, Lines, Voice
from offbook.evaluation.verdict import KINDS, Facts, find

N = 30


def figure(value: float, spread: float = 0.1, n: int = N) -> Figure:
    return Figure(value, value - spread, value + spread, n)


def compared(base: float, tuned: float, spread: float = 0.1, n: int = N) -> Compared:
    return Compared(
        figure(base, spread, n), figure(tuned, spread, n), figure(tuned - base, spread, n)
    )


def voice_of(in_voice: Compared | None) -> Voice:
    some = compared(1, 1)
    return Voice(some, figure(0.98, 0.02), in_voice, some, figure(80), some, some, in_voice)


HEALTHY = Facts(
    inert=False,
    updates=300,
    lines=Lines(compared(4.0, 2.5), compared(1.6, 1.0), compared(4.0, 2.3)),
    forgetting=Forgetting(figure(0.6), compared(2.7, 2.8), figure(2.0)),
    voice=voice_of(compared(0.02, 0.95)),
    stops=compared(0.6, 0.97, 0.03),
)


def kinds(facts: Facts) -> list[str]:
    found = [finding.kind for finding in find(facts)]
    assert set(found) <= set(KINDS)
    return found


def test_a_healthy_run_took() -> None:
    assert kinds(HEALTHY) == ["took"]
    assert kinds(replace(HEALTHY, voice=voice_of(None))) == ["took"]
    assert kinds(replace(HEALTHY, voice=None, stops=None)) == ["took"]


def test_inert() -> None:
    (found,) = find(
        replace(
            HEALTHY,
            inert=True,
            lines=Lines(compared(4, 4, 0.0), compared(1.6, 1.6)),
            forgetting=Forgetting(figure(0, 0), compared(2.7, 2.7, 0), figure(0, 0)),
        )
    )
    assert found.kind == "did not take"
    assert "inert" in found.because


@pytest.mark.parametrize(("updates", "advice"), [(3, "too few"), (300, "learning_rate")])
def test_too_little(updates: int, advice: str) -> None:
    lines = Lines(compared(4.0, 3.9), compared(1.6, 1.6), compared(4.0, 3.9))
    (found,) = find(replace(HEALTHY, lines=lines, updates=updates))
    assert found.kind == "did not take"
    assert advice in found.advice
    quiet = replace(HEALTHY, voice=voice_of(compared(0.0, 0.1)), updates=updates)
    (found,) = find(quiet)  # the loss fell, but the replies sound like the base
    assert found.kind == "did not take"
    assert advice in found.advice


def test_a_broken_model_forgot_and_nothing_else() -> None:
    broken = replace(
        HEALTHY,
        lines=Lines(compared(4.0, 8.0), compared(1.6, 3.2), compared(4.0, 8.1)),
        forgetting=Forgetting(figure(12.0), compared(2.7, 15.0), figure(6.0)),
        voice=voice_of(compared(0.02, 0.0)),
        stops=compared(0.6, 0.0, 0.03),
    )
    assert kinds(broken) == ["forgot"]


def test_rows_known_by_heart() -> None:
    lines = Lines(compared(4.0, 3.0), compared(1.6, 1.2), compared(4.0, 0.1))
    assert kinds(replace(HEALTHY, lines=lines))[0] == "overfitted"
    risen = replace(lines, best=figure(0.4), best_step=100)
    found = find(replace(HEALTHY, lines=risen))[0]
    assert found.kind == "overfitted"
    assert "--checkpoint best" in found.advice


def test_replies_without_an_end() -> None:
    assert kinds(replace(HEALTHY, stops=compared(0.6, 0.1, 0.05))) == ["does not stop", "took"]


def test_few_prompts_tell_nothing() -> None:
    few = replace(
        HEALTHY,
        lines=Lines(compared(4.0, 2.0, n=4), compared(1.6, 1.0, n=4)),
        voice=voice_of(compared(0, 1, n=4)),
        stops=compared(0.6, 0.0, n=4),
        forgetting=Forgetting(figure(0.6, n=4), compared(2.7, 2.8, n=4), figure(2.0, n=4)),
    )
    (found,) = find(few)
    assert (found.kind, "--data" in found.advice) == ("cannot tell", True)


def test_a_difference_inside_the_noise_is_none() -> None:
    noisy = Lines(compared(4.0, 3.2, 0.9), compared(1.6, 1.2), compared(4.0, 3.2))
    (found,) = find(replace(HEALTHY, lines=noisy))
    assert found.kind == "cannot tell"
    assert "by -0.80 ± 0.90 nats per token; a fall of 0.40, which" in found.because
    (found,) = find(replace(HEALTHY, voice=voice_of(compared(0.45, 0.5, 0.1))))
    assert found.kind == "cannot tell"
    assert "not certain that the replies sound like the role" in found.because
    (found,) = find(replace(HEALTHY, voice=voice_of(compared(0.02, 0.55, 0.1))))
    assert found.kind == "cannot tell"
