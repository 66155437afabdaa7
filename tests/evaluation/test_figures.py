"""Intervals hold what they promise, for few rows and for rows that belong together."""

from __future__ import annotations

import numpy as np
import pytest

from offbook.evaluation.figures import compare, compare_shares, figure, share, students_t

TRIES = 400


@pytest.mark.parametrize("rows", [5, 8, 13, 60])
def test_intervals_cover_the_truth(rows: int) -> None:
    """In 95% of the cases, with skewed values too; chance allows 3% less in 400 tries."""
    for draw in (
        lambda r: r.normal(1.0, 0.5, rows),
        lambda r: r.gamma(4.0, 0.25, rows),
    ):
        found = [figure(draw(np.random.default_rng(seed))) for seed in range(TRIES)]
        covered = sum(f.low <= 1.0 <= f.high for f in found) / TRIES
        # Of a few skewed values, no interval that is made of them alone is wide enough.
        assert covered >= (0.92 if rows > 8 else 0.88)


def test_the_same_model_on_other_rows_makes_no_difference() -> None:
    """Pairs of resampled halves of the same losses: a difference is found in 5% at most."""
    losses = np.random.default_rng(0).gamma(4.0, 0.5, 400)
    false = 0
    for seed in range(200):
        first, second = np.random.default_rng(seed).choice(losses, (2, 40), replace=False)
        change = compare(first, second).change
        false += not change.low <= 0 <= change.high
    assert false / 200 <= 0.07  # 5%, and what chance adds in 200 tries


def test_rows_with_one_prompt_count_once() -> None:
    values = np.random.default_rng(0).normal(size=12)
    apart = figure(values, range(12))
    repeated = figure(np.repeat(values, 10), np.repeat(range(12), 10).tolist())
    assert repeated.n == apart.n == 12
    assert repeated.low == pytest.approx(apart.low)
    assert figure(np.repeat(values, 10)).low > apart.low  # which is too narrow


def test_sums_over_tokens_are_divided_by_tokens() -> None:
    found = figure([10.0, 30.0, 2.0], weights=[5, 10, 1])
    assert found.value == 42 / 16
    assert found.low < 42 / 16 < found.high


def test_a_change_is_measured_row_by_row() -> None:
    base = np.random.default_rng(0).normal(5, 3, 30)
    found = compare(base, base - 0.1)
    assert found.change.high < 0
    assert found.base.low < found.tuned.value  # although the models themselves overlap


def test_shares_that_all_agree_have_an_interval() -> None:
    assert share([True] * 10).low == pytest.approx(0.72, abs=0.01)
    assert share([False] * 10).high == pytest.approx(0.28, abs=0.01)
    assert share([0.9, 0.1, 0.0, 0.0, 0.0]).low == 0.0  # not below what a share can be
    half = share([True, False] * 10)
    assert 0 < half.low < half.value == 0.5 < half.high < 1


@pytest.mark.parametrize("prompts", [3, 5, 16])
@pytest.mark.parametrize(
    ("base", "tuned", "alike"),  # `alike`: the share of rows that are hard or easy for both models
    [(0.1, 0.9, 0.0), (0.5, 0.5, 0.0), (0.5, 0.6, 0.8), (0.3, 0.9, 0.5)],
)
@pytest.mark.parametrize("repeated", [False, True])
def test_intervals_of_a_change_of_shares_cover_the_truth(
    prompts: int, base: float, tuned: float, alike: float, repeated: bool
) -> None:
    draw = np.random.default_rng(prompts)
    covered = 0
    for _ in range(200):
        easy = draw.random(prompts)
        other = np.where(draw.random(prompts) < alike, easy, draw.random(prompts))
        rows = np.arange(prompts)
        if repeated:
            rows = np.repeat(rows, draw.integers(1, 6, prompts))
        change = compare_shares((easy < base)[rows], (other < tuned)[rows], rows.tolist()).change
        covered += change.low <= tuned - base <= change.high
    assert covered / 200 >= 0.9


def test_a_change_of_all_rows_has_an_interval() -> None:
    change = compare_shares([False] * 10, [True] * 10).change
    assert (change.value, change.high) == (1.0, 1.0)
    assert 0.4 < change.low < 0.8
    none = compare_shares([False] * 10, [False] * 10).change
    assert none.low < 0 == none.value < none.high
    one = compare_shares([False], [True]).change
    assert (one.low, one.high) == (-1.0, 1.0)


def test_one_row_tells_nothing() -> None:
    found = figure([3.0])
    assert (found.value, found.low, found.high, found.n) == (3.0, -np.inf, np.inf, 1)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (30, 2.042)]
)
def test_students_t(degrees: int, quantile: float) -> None:
    """From the tables."""
    assert students_t(degrees) == pytest.approx(quantile, rel=0.01)
