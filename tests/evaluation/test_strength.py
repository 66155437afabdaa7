"""A strength is named only where there are prompts enough to tell it from others."""

from __future__ import annotations

import pytest

from offbook.evaluation.record import AtStrength
from offbook.evaluation.strength import best_strength
from offbook.evaluation.verdict import FEWEST_PROMPTS
from support.evaluations import figure


@pytest.mark.parametrize(("prompts", "best"), [(1, None), (FEWEST_PROMPTS, 0.5)])
def test_the_best_strength(prompts: int, best: float | None) -> None:
    losses = {0.0: 3.0, 0.5: 2.0, 1.0: 2.5}
    measured = [
        AtStrength(at, figure(loss, 0.1, prompts), figure(at / 10, 0.01))
        for at, loss in losses.items()
    ]
    assert best_strength(measured) == best


def test_nothing_was_measured() -> None:
    assert best_strength([]) is None
