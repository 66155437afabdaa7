"""Charts and curves: what is drawn is what was logged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest

from offbook.evaluation.record import Figure
from offbook.monitor import EvalMetrics, Metrics, SkippedStep, SmallerMicroBatches, StepMetrics
from offbook.report.charts import (
    MOST_POINTS,
    MOST_ROWS,
    Chart,
    Series,
    interval_bars,
    nice_ticks,
    short,
    thinned,
)
from offbook.report.curves import Curves
from offbook.report.words import KINDS, MEANINGS, WORDS, Text, same


def step(number: int, loss: float = 2.0) -> StepMetrics:
    return StepMetrics(number, number / 4, loss, 1.0, 1e-4, 8.0)


def chart(*points: tuple[float, float], wide: bool = False) -> Chart:
    return Chart("key", same("name"), [Series(same("line"), points)], wide=wide)


def test_lines_that_were_logged_twice_count_once() -> None:
    before = [step(1), step(2), EvalMetrics(2, 3.0), step(3), step(4), step(5)]
    again = [step(3, 1.0), step(4, 1.0), EvalMetrics(4, 2.5)]
    curves = Curves.of([*before, *again])
    assert [(r.step, r.loss) for r in curves.steps] == [(1, 2), (2, 2), (3, 1), (4, 1)]
    assert [(r.step, r.eval_loss) for r in curves.validations] == [(2, 3.0), (4, 2.5)]


def test_all_kinds_of_lines_are_known() -> None:
    records: list[Metrics] = [
        EvalMetrics(0, 3.0),
        SkippedStep(2, 9.0, 2.0),
        SmallerMicroBatches(3, 512),
        step(4),
        EvalMetrics(4, 2.0),
        EvalMetrics(8, 2.5),
        Metrics(9),
    ]
    curves = Curves.of(records)
    assert (curves.before, curves.after, curves.step) == (3.0, 2.5, 8)
    assert curves.best == EvalMetrics(4, 2.0)
    loss = curves.charts()[0]
    assert [one.name.en for one in loss.shown] == ["training", "validation", "skipped steps"]
    assert Curves.of([]).charts() == []


def test_memory_is_drawn_where_it_was_measured() -> None:
    @dataclass(frozen=True)
    class Measured(StepMetrics):
        memory: int = 0

    measured = Measured(5, 1.0, 2.0, 1.0, 1e-4, 8.0, memory=3_000_000_000)
    charts = {chart.key: chart for chart in Curves.of([step(4), measured]).charts()}
    assert charts["memory"].rows == [["5", "3"]]
    assert "memory" not in {chart.key for chart in Curves.of([step(4)]).charts()}


@pytest.mark.parametrize("values", [(0.1,), (0.0, 0.0), (-1.0, -1.0), (1e-9, 2e-9), (3e9, 5e9)])
def test_any_numbers_can_be_drawn(values: tuple[float, ...]) -> None:
    drawn = str(chart(*enumerate(values)).__html__())
    numbers = [float(n) for n in re.findall(r' c?[xy][12]?="([^"]+)"', drawn)]
    assert numbers
    assert all(map(math.isfinite, numbers))


def test_what_is_not_finite_is_left_out() -> None:
    broken = chart((1, math.nan), (2, 1.0), (3, math.inf), (4, 2.0))
    assert broken.rows == [["2", "1"], ["4", "2"]]
    assert "nan" not in broken.__html__()
    assert chart((1, math.nan)).__html__() == ""
    bars = interval_bars([(Figure(math.nan, math.nan, math.nan, 0), "a")])
    assert bars == ""


def test_a_long_line_keeps_its_extremes_and_its_ends() -> None:
    points = [(float(x), math.sin(x / 40)) for x in range(10_000)]
    points[4321] = (4321.0, 9.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (4321.0, 9.0) in kept
    for at in (1, len(points) - 2):  # beside an end
        changed = [*points]
        changed[at] = (float(at), 9.0)
        assert changed[at] in thinned(changed)
        assert (thinned(changed)[0], thinned(changed)[-1]) == (points[0], points[-1])
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    rows = chart(*points).rows
    assert len(rows) <= MOST_ROWS + 1
    assert rows[-1][0] == "9999"


def test_ticks_are_round_numbers_within_the_axis() -> None:
    for low, high in ((0.0, 7.3), (-0.2, 0.9), (1e-6, 3e-5), (120.0, 90_000.0)):
        ticks = nice_ticks(low, high, 5)
        assert 2 <= len(ticks) <= 6
        assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)


def test_numbers_are_short() -> None:
    numbers = {0: "0", 60.0: "60", 0.0013: "0.0013", 1e-5: "1e-5", 2.5e7: "2.5e7", -0.25: "-0.25"}
    assert {value: short(value) for value in numbers} == numbers


def test_a_chart_says_what_it_shows() -> None:
    text = chart((0, 3.5), (10, 1.25)).description
    assert text.en == "name: line from 3.5 at step 0 to 1.25 at 10, lowest 1.25, highest 3.5."
    assert text.zh.startswith("name：line从步 0 的 3.5")


def test_every_text_is_there_in_both_languages() -> None:
    for texts in (WORDS, KINDS, MEANINGS):
        for name, text in texts.items():
            assert text.en.strip(), name
            assert text.zh.strip(), name
            values = [set(re.findall(r"\{\w+\}", t)) for t in (text.en, text.zh)]
            assert values[0] == values[1], name
    assert KINDS.keys() == MEANINGS.keys()


def test_texts_are_escaped_in_both_languages() -> None:
    text = Text('<b>"', "<b>{name}\x1b").with_values(name="'&")
    assert str(text.__html__()) == (
        '<span data-en="&lt;b&gt;&#34;" data-zh="&lt;b&gt;&#39;&amp;\\x1b">&lt;b&gt;&#34;</span>'
    )
