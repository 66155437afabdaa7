"""The adapter at several strengths: how much of the role, for how much forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel

from offbook.engine.engine import Engine
from offbook.evaluation.figures import figure
from offbook.evaluation.losses import Meter
from offbook.evaluation.record import AtStrength
from offbook.evaluation.subject import Progress, Row, prompts_of, spread
from offbook.models.adapter import set_strength

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
ROWS, GENERAL_ROWS = 24, 12  # general answers are long


def measure_strengths(
    engine: Engine,
    trained: float,
    held_out: Sequence[Row],
    general: Sequence[Row],
    progress: Progress,
) -> list[AtStrength]:
    """The base, and the adapter at several strengths, on some of the rows."""
    parts = spread(held_out, ROWS), spread(general, GENERAL_ROWS)
    own, other = (Meter(engine, [row.example for row in rows]) for rows in parts)
    assert isinstance(engine.model, PeftModel)
    found = []
    for number, strength in enumerate(STRENGTHS):
        progress("adapter strengths", number, len(STRENGTHS))
        set_strength(engine.model, strength)
        scores, forgot = own.measure(), other.measure()
        found.append(
            AtStrength(
                strength,
                figure(scores.tuned, prompts_of(parts[0]), scores.tokens),
                figure(forgot.kl, weights=forgot.tokens),
            )
        )
    set_strength(engine.model, trained)
    loss = figure(scores.base, prompts_of(parts[0]), scores.tokens)
    return [AtStrength(0.0, loss, figure(0 * forgot.kl, weights=forgot.tokens)), *found]


def best_strength(measured: Sequence[AtStrength]) -> float:
    """The strength at which the held-out loss and KL from the base, both in nats, are least."""
    return min(measured, key=lambda at: at.loss.value + at.kl.value).strength
