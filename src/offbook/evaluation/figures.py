"""Means with an error bar: a bootstrap over prompts.

Rows with the same prompt are not independent, so whole prompts are drawn. The bootstrap of a few
prompts is too narrow, by the factor sqrt(n / (n - 1)) and by that of Student's t distribution
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12); both are put back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offbook.evaluation.record import Compared, Figure

Sums = tuple[NDArray[np.float64], NDArray[np.float64]]  # of values and of weights, by prompt

DRAWS = 4000
SEED = 0
Z = 1.959964  # of a normal distribution's 95% interval


def figure(
    values: ArrayLike, groups: Sequence[object] | None = None, weights: ArrayLike | None = None
) -> Figure:
    """The mean of values, or of `values / weights` where these are sums over tokens.

    Args:
        values: [rows].
        groups: the prompt of each row; by default, all differ.
        weights: [rows]; 1 by default.
    """
    sums, sizes = _by_group(values, groups, weights)
    n = len(sums)
    mean = float(sums.sum() / sizes.sum())
    if n < 2:
        return Figure(mean, -math.inf, math.inf, n)
    counts = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), DRAWS)
    drawn = (counts @ sums) / (counts @ sizes)
    low, high = np.quantile(drawn, [0.025, 0.975])
    wider = math.sqrt(n / (n - 1)) * students_t(n - 1) / Z
    return Figure(mean, mean - (mean - float(low)) * wider, mean + (float(high) - mean) * wider, n)


def share(values: ArrayLike, groups: Sequence[object] | None = None) -> Figure:
    """The mean of values from 0 to 1, such as whether something is true of a row.

    Where it is 0 or 1, a bootstrap has no width; the interval is Wilson's (1927).
    """
    found = figure(np.asarray(values, dtype=float), groups)
    edge = Z**2 / (found.n + Z**2)
    if found.value == 0:
        return Figure(0.0, 0.0, edge, found.n)
    if found.value == 1:
        return Figure(1.0, 1 - edge, 1.0, found.n)
    return Figure(found.value, max(found.low, 0.0), min(found.high, 1.0), found.n)


def compare(
    base: ArrayLike,
    tuned: ArrayLike,
    groups: Sequence[object] | None = None,
    weights: ArrayLike | None = None,
) -> Compared:
    """The means of base and tuned model, and of their difference on the same rows."""
    change = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    return Compared(
        figure(base, groups, weights),
        figure(tuned, groups, weights),
        figure(change, groups, weights),
    )


def compare_shares(
    base: ArrayLike, tuned: ArrayLike, groups: Sequence[object] | None = None
) -> Compared:
    """As `compare`, of values from 0 to 1.

    Where all are 0 or 1, the interval of the change is Newcombe's (1998, method 10), since a
    bootstrap of a few of them is too narrow, and has no width where all rows change alike.
    """
    pair = [np.asarray(values, dtype=float) for values in (base, tuned)]
    sums = [_by_group(values, groups, None) for values in pair]
    if len(sums[0][0]) > 1 and np.isin(pair, (0, 1)).all():
        change = _newcombe(*sums)
    else:
        change = figure(pair[1] - pair[0], groups)
    change = replace(change, low=max(change.low, -1.0), high=min(change.high, 1.0))
    return Compared(share(base, groups), share(tuned, groups), change)


def _newcombe(base: Sums, tuned: Sums) -> Figure:
    """The change of a share: the intervals of both, combined by how they are correlated.

    Both are Wilson's, with Student's t in place of the normal quantile. Their number of rows is
    that of prompts, less where some prompts have more rows than others.
    """
    sizes, prompts = base[1], len(base[1])
    z2 = students_t(prompts - 1) ** 2
    n = sizes.sum() ** 2 / np.square(sizes).sum()
    ends = []
    for sums, _ in (base, tuned):
        p = sums.sum() / sizes.sum()
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
        ends.append((p, p - middle + half, middle + half - p))
    (before, *at_base), (after, *at_tuned) = ends
    together = np.cov(base[0] / sizes, tuned[0] / sizes, bias=True)
    spread = math.sqrt(together[0, 0] * together[1, 1])
    covariance = together[0, 1]
    if covariance > 0:  # Newcombe's continuity correction
        covariance = max(covariance - 1 / (2 * prompts), 0)
    correlation = covariance / spread if spread else 0.0
    down, up = (
        math.sqrt(a**2 + b**2 - 2 * correlation * a * b)
        for a, b in zip(at_tuned, reversed(at_base), strict=True)
    )
    change = float(after - before)
    return Figure(change, change - down, change + up, prompts)


def students_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t distribution.

    For one and two degrees of freedom it is exact; for more, Hill's expansion (1970) is right to
    1%.
    """
    if degrees == 1:
        return 12.706
    if degrees == 2:
        return 4.303
    d, z = float(degrees), Z
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )


def _by_group(
    values: ArrayLike, groups: Sequence[object] | None, weights: ArrayLike | None
) -> Sums:
    """The sums of values and of weights of each group."""
    values = np.asarray(values, dtype=np.float64)
    sizes = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if groups is None:
        return values, sizes
    numbers: dict[object, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums, totals = np.zeros(len(numbers)), np.zeros(len(numbers))
    np.add.at(sums, index, values)
    np.add.at(totals, index, sizes)
    return sums, totals
