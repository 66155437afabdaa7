"""The adapter at several strengths: how much of the role, for how much forgetting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from offbook.engine.engine import Engine
from offbook.evaluation.figures import figure
from offbook.evaluation.losses import Measured
from offbook.evaluation.record import AtStrength
from offbook.evaluation.subject import Progress, prompts_of
from offbook.evaluation.verdict import FEWEST_PROMPTS
from offbook.models.adapter import set_strength

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
ROWS, GENERAL_ROWS = 24, 12  # general answers are long


def measure_strengths(
    engine: Engine, trained: float, held_out: Measured, general: Measured, progress: Progress
) -> list[AtStrength]:
    """The base, and the adapter at several strengths, on some of the rows.

    Args:
        engine: of the model.
        trained: the strength at which the rows were measured; the model has it afterwards, too.
        held_out: rows in the role.
        general: rows that have nothing to do with it.
        progress: see `evaluate`.
    """
    own, other = held_out.some(ROWS), general.some(GENERAL_ROWS)
    assert isinstance(engine.model, PeftModel)

    def at(strength: float, losses: NDArray[np.float64], kl: NDArray[np.float64]) -> AtStrength:
        return AtStrength(
            strength,
            figure(losses, prompts_of(own.rows), own.scores.tokens),
            figure(kl, weights=other.scores.tokens),
        )

    found = [at(0.0, own.scores.base, 0 * other.scores.kl)]
    for number, strength in enumerate(STRENGTHS):
        progress("adapter strengths", number, len(STRENGTHS))
        scores, forgot = own.scores, other.scores
        if strength != trained:
            set_strength(engine.model, strength)
            scores, forgot = own.meter.measure(), other.meter.measure()
        found.append(at(strength, scores.tuned, forgot.kl))
    set_strength(engine.model, trained)
    return found


def best_strength(measured: Sequence[AtStrength]) -> float | None:
    """The strength at which the held-out loss and KL from the base, both in nats, are least.

    None where there are too few prompts to say so.
    """
    if not measured or min(n for at in measured for n in (at.loss.n, at.kl.n)) < FEWEST_PROMPTS:
        return None
    return min(measured, key=lambda at: at.loss.value + at.kl.value).strength
