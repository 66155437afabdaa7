"""Charts as inline SVG: lines over steps, and intervals as small bars.

A chart has a name and a description for screen readers, and the same numbers as a table. Colours
are those of the page's style sheet, by class. Sizes are in units of the drawing, which the page
scales to its width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from markupsafe import Markup

from offbook.evaluation.record import Figure
from offbook.report.words import WORDS, Text, same

Point = tuple[float, float]
WIDE, NARROW, SMALL = (880, 300), (380, 250), (380, 190)
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 38  # margins, in which the numbers of the axes are
MOST_POINTS = 400  # of a line; more cannot be told apart
MOST_ROWS = 200  # of a table
BAR = (150, 26)  # of an interval


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: of the line.
        points: x and y, in the order in which they are joined; those that are not finite are left
            out.
        style: class of its colour: `a` to `f`.
        dots: whether each point is marked.
        joined: whether there is a line between the points.
        labels: a text beside each point; empty for none.
    """

    name: Text
    points: Sequence[Point]
    style: str = "a"
    dots: bool = False
    joined: bool = True
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """Lines on one plot.

    Attributes:
        key: its name in the page, unique.
        title: what the lines show.
        x: what the horizontal axis shows.
        series: the lines.
        note: what else is to be said.
        wide: whether it is as wide as the page; it is drawn a second time for phones.
    """

    key: str
    title: Text
    series: Sequence[Series]
    x: Text = WORDS["step"]
    note: Text | None = None
    wide: bool = False

    @cached_property
    def shown(self) -> list[Series]:
        """The lines that have a point."""
        kept = []
        for one in self.series:
            points = [p for p in one.points if all(map(math.isfinite, p))]
            labels = [text for text, p in zip(one.labels, one.points, strict=False) if p in points]
            if points:
                kept.append(Series(one.name, points, one.style, one.dots, one.joined, labels))
        return kept

    def __html__(self) -> str:
        if not self.wide:
            return _draw(self, SMALL, "small")
        return _draw(self, WIDE, "wide") + _draw(self, NARROW, "narrow")

    @cached_property
    def description(self) -> Text:
        """What the chart shows, in words."""
        languages = []
        for pick in ("en", "zh"):
            parts = []
            for one in self.shown:
                values = [y for _, y in one.points]
                part = WORDS["chart_part"].with_values(
                    name=getattr(one.name, pick),
                    x=getattr(self.x, pick),
                    begin=short(one.points[0][0]),
                    end=short(one.points[-1][0]),
                    first=short(values[0]),
                    last=short(values[-1]),
                    low=short(min(values)),
                    high=short(max(values)),
                )
                parts.append(getattr(part, pick))
            text = WORDS["chart_of"].with_values(
                name=getattr(self.title, pick), parts="; ".join(parts)
            )
            languages.append(getattr(text, pick))
        return Text(*languages)

    @property
    def every(self) -> int:
        """Of how many rows the table has one."""
        return math.ceil(len(self._xs) / MOST_ROWS) or 1

    @property
    def rows(self) -> list[list[str]]:
        """The table: a row for each x, with the value of each line or nothing."""
        values = [dict(one.points) for one in self.shown]
        xs = self._xs
        kept = xs[:: self.every]
        if xs and kept[-1] != xs[-1]:
            kept.append(xs[-1])
        return [[short(x, 6), *(short(v[x], 5) if x in v else "" for v in values)] for x in kept]

    @cached_property
    def _xs(self) -> list[float]:
        return sorted({x for one in self.shown for x, _ in one.points})


def short(value: float, digits: int = 4) -> str:
    """A number in few characters."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.{digits - 2}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them where that is possible."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points of a line, with both ends and the extremes of each part."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / (MOST_POINTS // 2 - 1))
    kept: list[Point] = []
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    first, last = points[0], points[-1]
    return [*([first] if kept[0] != first else []), *kept, *([last] if kept[-1] != last else [])]


def _draw(chart: Chart, size: tuple[int, int], name: str) -> Markup:
    """The drawing; nothing where there is no point."""
    series, (width, height) = chart.shown, size
    if not series:
        return Markup("")
    points = [point for one in series for point in one.points]
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([y for _, y in points], room=0.06)

    def x_at(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return height - BOTTOM - (y - y_low) / (y_high - y_low) * (height - TOP - BOTTOM)

    key = f"{chart.key}-{name}"
    parts = [
        Markup(
            '<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d">'
        ).format(name, width, height, key, key),
        Markup('<title id="{}-t" {}>{}</title>').format(
            key, chart.title.attributes, chart.title.en
        ),
        Markup('<desc id="{}-d" {}>{}</desc>').format(
            key, chart.description.attributes, chart.description.en
        ),
    ]
    for y in nice_ticks(y_low, y_high, 5):
        parts.append(_line((LEFT, y_at(y)), (width - RIGHT, y_at(y)), "grid"))
        parts.append(_text(LEFT - 7, y_at(y) + 4, same(short(y)), "end"))
    parts += [
        _text(x_at(x), height - BOTTOM + 17, same(short(x, 6)), "middle")
        for x in nice_ticks(x_low, x_high, 8 if width > 500 else 4)
    ]
    parts.append(_text(width - RIGHT, height - 4, chart.x, "end"))
    for one in series:
        parts += _draw_series(one, x_at, y_at)
    return Markup("").join([*parts, Markup("</svg>")])


def _draw_series(
    one: Series, x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> Iterable[Markup]:
    placed = [(x_at(x), y_at(y)) for x, y in thinned(one.points)]
    if one.joined and len(placed) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        yield Markup('<path class="line {}" d="M{}"/>').format(one.style, path)
    if one.dots or len(placed) == 1:
        for x, y in placed:
            yield Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(
                one.style, x, y
            )
    farthest = max(x for x, _ in placed)
    for label, (x, y) in zip(one.labels, placed, strict=False):
        at_edge = x == farthest
        yield _text(x + (0 if at_edge else 7), y - 8, same(label), "end" if at_edge else "start")


def _line(start: Point, end: Point, style: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        style, *start, *end
    )


def _text(x: float, y: float, text: Text, anchor: str) -> Markup:
    attributes = Markup("") if text.en == text.zh else text.attributes
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" {}>{}</text>').format(
        x, y, anchor, attributes, text.en
    )


def _range(values: Sequence[float], room: float = 0.0) -> Point:
    """The range of an axis: with `room` at both ends, and from 0 on where that is not far."""
    low, high = min(values), max(values)
    if 0 <= low < 0.35 * high and room:
        return 0.0, high * (1 + room)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        pad = abs(high) / 2 or 1.0
        return low - pad, high + pad
    return low - room * (high - low), high + room * (high - low)


def interval_bars(figures: Sequence[tuple[Figure, str]], zero: bool = False) -> Markup:
    """Intervals below each other, on one scale; a decoration, as the numbers are beside it.

    Args:
        figures: each with the class of its colour.
        zero: whether a line marks 0.
    """
    width, height = BAR
    ends = [end for figure, _ in figures for end in (figure.low, figure.high, figure.value)]
    ends = [end for end in [*ends, *([0.0] if zero else [])] if math.isfinite(end)]
    if not ends:
        return Markup("")
    low, high = _range(ends)

    def at(value: float) -> float:
        return 6 + (value - low) / (high - low) * (width - 12)

    parts = [
        Markup('<svg class="bars" viewBox="0 0 {} {}" aria-hidden="true">').format(width, height)
    ]
    if zero:
        parts.append(_line((at(0), 1), (at(0), height - 1), "zero"))
    gap = height / (len(figures) + 1)
    for number, (figure, style) in enumerate(figures, 1):
        if not all(map(math.isfinite, (figure.low, figure.high, figure.value))):
            continue
        y = gap * number
        parts.append(_line((6, y), (width - 6, y), "grid"))
        parts.append(_line((at(figure.low), y), (at(figure.high), y), f"interval {style}"))
        parts.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(
                style, at(figure.value), y
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])
