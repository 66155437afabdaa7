"""Order and micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offbook.batching import Schedule, collate, micro_batches
from offbook.config import TrainSettings
from offbook.examples import Examples, tokenize
from offbook.template import IGNORED, ChatTemplate
from test_examples import numbered

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(template: ChatTemplate) -> Examples:
    return tokenize(numbered(20, 20), template)


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


def test_padding_is_on_the_right_and_not_supervised(examples: Examples) -> None:
    batch = collate([examples[0], examples[11]], CPU)
    for row, example in enumerate((examples[0], examples[11])):
        n = len(example)
        assert batch.input_ids[row, :n].tolist() == example.input_ids.tolist()
        assert batch.labels[row, :n].tolist() == example.labels.tolist()
        assert (batch.labels[row, n:] == IGNORED).all()


@pytest.mark.parametrize("max_tokens", [1, 60, 100, 10**6])
def test_micro_batches_hold_every_row_within_the_budget(
    examples: Examples, max_tokens: int
) -> None:
    batches = micro_batches(list(examples), max_tokens, CPU)
    assert sum(len(b.input_ids) for b in batches) == len(examples)
    assert all(b.input_ids.numel() <= max_tokens or len(b.input_ids) == 1 for b in batches)
    assert sum(b.supervised for b in batches) == sum(int((e.labels >= 0).sum()) for e in examples)


def test_a_first_token_is_predicted_by_nothing_and_not_counted(examples: Examples) -> None:
    batch = collate([examples[0]], CPU)
    batch.labels[0] = batch.input_ids[0]
    assert batch.supervised == len(examples[0]) - 1
