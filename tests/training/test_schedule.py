"""Which examples a step sees, and how many steps there are."""

from __future__ import annotations

import numpy as np
import pytest

from offbook.config import TrainSettings
from offbook.training.schedule import Schedule


def test_an_epoch_sees_every_row_once() -> None:
    schedule = Schedule(examples=50, batch_size=16, seed=3)
    steps = [schedule.rows(step) for step in range(schedule.steps_per_epoch)]
    assert [len(rows) for rows in steps] == [16, 16, 16, 2]
    assert sorted(np.concatenate(steps)) == list(range(50))


def test_the_order_is_new_each_epoch_and_the_same_each_time() -> None:
    schedule = Schedule(50, 16, 3)
    assert schedule.rows(0).tolist() != schedule.rows(4).tolist()
    assert schedule.rows(5).tolist() == Schedule(50, 16, 3).rows(5).tolist()
    assert schedule.rows(0).tolist() != Schedule(50, 16, 4).rows(0).tolist()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"num_train_epochs": 3}, 12), ({"num_train_epochs": 0.5}, 2), ({"max_steps": 7}, 7)],
)
def test_total_steps(settings: dict[str, float], steps: int) -> None:
    assert Schedule(50, 16, 3).total_steps(TrainSettings(**settings)) == steps
