"""Several runs compared: settings that differ, losses, scores, and replies prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offbook.errors import ConfigError
from offbook.evaluation.figures import compare
from offbook.evaluation.record import Evaluation, Reply
from offbook.evaluation.saved import read_evaluation
from offbook.evaluation.voice import likeness
from offbook.report.charts import Chart, Point, Series
from offbook.report.curves import Curves
from offbook.report.page import render_parts, whole_page
from offbook.report.scorecard import KINDS, QUESTIONS, Row, questions
from offbook.report.words import WORDS, Text, same
from offbook.runs.directory import RunDirectory

MOST_RUNS = 6  # as many as there are colours
STYLES = "abcdef"
SECTIONS = ("curves", "differences", "losses", "scores", "paired")


@dataclass(frozen=True)
class Compared:
    """A run that is compared with others.

    Attributes:
        name: the shortest end of its path that no other has.
        settings: each setting and each hash of what went in, as text.
        curves: what was logged.
        evaluation: what was found; None where it was not evaluated.
    """

    name: str
    settings: dict[str, str]
    curves: Curves
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Pairing:
    """How a run's replies differ from those of the first run, on the prompts that both answered.

    Attributes:
        name: of the run.
        style: its colour.
        rows: the figures of the first run in place of the base's, those of this run in place of
            the tuned model's, and the differences.
    """

    name: str
    style: str
    rows: list[Row]

    @property
    def n(self) -> int:
        """How many prompts there are."""
        return self.rows[0].tuned.n


@dataclass(frozen=True)
class Line:
    """A line of a table with a column for each run.

    Attributes:
        name: of the line.
        values: a text for each run.
        intervals: the 95% interval of each; empty where they have none.
    """

    name: Text | str
    values: list[str]
    intervals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Several runs; the others are compared with the first."""

    runs: list[Compared]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Comparison:
        """The runs in these directories.

        Raises:
            ConfigError: when there are too few, too many, or one twice.
            CheckpointError: when one is no run, or a file of it is damaged.
        """
        if not 2 <= len(paths) <= MOST_RUNS:
            raise ConfigError(f"{len(paths)} cannot be compared", fix=f"name 2 to {MOST_RUNS} runs")
        if len({path.resolve() for path in paths}) < len(paths):
            raise ConfigError("a run is named twice", fix="name each run once")
        return cls([_read(path, name) for path, name in zip(paths, _names(paths), strict=True)])

    def differences(self) -> list[Line]:
        """The settings that differ."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        lines = [Line(key, [run.settings.get(key, "–") for run in self.runs]) for key in keys]
        return [line for line in lines if len(set(line.values)) > 1]

    def losses(self) -> list[Line]:
        """Steps and losses."""
        kinds: list[tuple[str, Callable[[Curves], str]]] = [
            ("steps", lambda c: f"{c.step:,}"),
            ("loss_before", lambda c: _loss(c.before)),
            ("loss_after", lambda c: _loss(c.after)),
            ("loss_best", lambda c: _loss(c.best.eval_loss if c.best else None)),
            ("loss_training", lambda c: _loss(c.steps[-1].loss if c.steps else None)),
        ]
        return [Line(WORDS[key], [show(run.curves) for run in self.runs]) for key, show in kinds]

    def scores(self) -> list[tuple[Text, list[Line]]]:
        """The questions of the scorecards, each with its figures of the tuned models."""
        answered = [_by_key(run.evaluation) for run in self.runs]
        found = []
        for key, text in QUESTIONS.items():
            figures = dict.fromkeys(k for one in answered for k in one.get(key, {}))
            lines = []
            for figure in figures:
                rows = [one.get(key, {}).get(figure) for one in answered]
                values = [row.value(row.tuned) if row else "–" for row in rows]
                intervals = [row.interval(row.tuned) if row else "" for row in rows]
                lines.append(Line(_name([row for row in rows if row]), values, intervals))
            if lines:
                found.append((text, lines))
        return found

    def pairings(self) -> list[Pairing]:
        """The other runs beside the first, where both have answered the same prompts."""
        first = self.runs[0].evaluation
        others = zip(self.runs[1:], STYLES[1:], strict=False)
        pairs = [(run.name, style, paired(first, run.evaluation)) for run, style in others]
        return [Pairing(name, style, rows) for name, style, rows in pairs if rows]

    def charts(self) -> list[Chart]:
        """The curves of all runs on one plot each."""
        kinds: list[tuple[str, Callable[[Curves], list[Point]]]] = [
            ("validation_loss", lambda c: [(r.step, r.eval_loss) for r in c.validations]),
            ("training_loss", lambda c: [(r.step, r.loss) for r in c.steps]),
        ]
        charts = []
        for key, points in kinds:
            lines = [
                Series(same(run.name), points(run.curves), style, dots=key == "validation_loss")
                for run, style in zip(self.runs, STYLES, strict=False)
            ]
            charts.append(Chart(key.replace("_", "-"), WORDS[key], lines, wide=True))
        return [chart for chart in charts if chart.shown]

    def render(self) -> str:
        """The comparison as a page, like a report."""
        parts = render_parts("compare.html", ("heading", "contents", *SECTIONS), self)
        return whole_page(" · ".join(run.name for run in self.runs), parts, list(SECTIONS))


def paired(first: Evaluation | None, other: Evaluation | None) -> list[Row]:
    """How replies to the same prompts differ, with intervals; empty where there are none.

    A prompt is the same where its row and its question are. The interval is that of the mean of
    the differences, by a bootstrap over prompts.
    """
    if first is None or other is None:
        return []
    before = {(reply.source, reply.question): reply for reply in first.replies}
    pairs = [
        (before[key], reply)
        for reply in other.replies
        if (key := (reply.source, reply.question)) in before
    ]
    rows = []
    for measured, measure in MEASURES.items() if pairs else ():
        old, new = ([measure(pair[which]) for pair in pairs] for which in (0, 1))
        rows.append(Row.of(measured, compare(old, new)))
    return rows


MEASURES: dict[str, Callable[[Reply], float]] = {
    "chrf": lambda reply: likeness(reply.tuned, reply.reference),
    "stops": lambda reply: float(reply.tuned_stopped),
    "reply_length": lambda reply: float(len(reply.tuned)),
}


def _read(path: Path, name: str) -> Compared:
    run = RunDirectory.open(path)
    config, receipt = run.config(), run.receipt()
    settings = {key: str(value) for key, value in config.flat().items() if key != "output_dir"}
    inputs = {f"base: {key}": value for key, value in receipt.base.items()}
    inputs |= {"data": ", ".join(receipt.data.values())}
    inputs |= {f"version of {key}": value for key, value in receipt.versions.items()}
    curves = Curves.read(run)
    return Compared(name, settings | inputs, curves, read_evaluation(run))


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path with which they all differ."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _name(rows: Sequence[Row]) -> Text:
    """The name of a figure of several runs; a value in it is that of each, where they differ."""
    shown = {}
    for key in rows[0].values:
        values = [str(row.values[key]) for row in rows]
        shown[key] = " / ".join(values if len(set(values)) > 1 else values[:1])
    return KINDS[rows[0].key].name.with_values(**shown)


def _by_key(evaluation: Evaluation | None) -> dict[str, dict[str, Row]]:
    if evaluation is None:
        return {}
    return {q.key: {row.key: row for row in q.rows} for q in questions(evaluation)}


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
