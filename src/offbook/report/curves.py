"""The curves of a run, from its `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from offbook.monitor import EvalMetrics, Metrics, SkippedStep, SmallerMicroBatches, StepMetrics
from offbook.report.charts import Chart, Series
from offbook.report.words import WORDS, Text
from offbook.runs.directory import RunDirectory

Record = TypeVar("Record", bound=Metrics)


@dataclass
class Curves:
    """What was logged, with one record for each step, the steps rising.

    A run that is resumed forgets what was logged after its checkpoint, and logs these steps again.
    Should earlier lines still be there, as in a copy of a file, the later ones count.

    Attributes:
        steps, validations, skipped, smaller: the records of each kind.
        saved: the step of the newest checkpoint; not each step is logged.
    """

    steps: list[StepMetrics] = field(default_factory=list)
    validations: list[EvalMetrics] = field(default_factory=list)
    skipped: list[SkippedStep] = field(default_factory=list)
    smaller: list[SmallerMicroBatches] = field(default_factory=list)
    saved: int = 0

    @classmethod
    def read(cls, run: RunDirectory) -> Curves:
        """The curves of a run.

        Raises:
            CheckpointError: when `metrics.jsonl` is damaged.
        """
        curves = cls.of(run.metrics())
        curves.saved = max((step for step, _ in run.steps()), default=0)
        return curves

    @classmethod
    def of(cls, records: Iterable[Metrics]) -> Curves:
        """The curves of these lines, oldest first."""
        curves = cls()
        for record in records:
            if isinstance(record, StepMetrics):
                _put(curves.steps, record)
            elif isinstance(record, EvalMetrics):
                _put(curves.validations, record)
            elif isinstance(record, SkippedStep):
                _put(curves.skipped, record)
            elif isinstance(record, SmallerMicroBatches):
                _put(curves.smaller, record)
        return curves

    @property
    def step(self) -> int:
        """The last step that was logged or saved."""
        kinds = (self.steps, self.validations, self.skipped, self.smaller)
        return max([self.saved, *(kind[-1].step for kind in kinds if kind)])

    @property
    def before(self) -> float | None:
        """Validation loss of the base."""
        first = self.validations[0] if self.validations else None
        return first.eval_loss if first and first.step == 0 else None

    @property
    def after(self) -> float | None:
        """Validation loss of the last validation after a step."""
        last = self.validations[-1] if self.validations else None
        return last.eval_loss if last and last.step > 0 else None

    @property
    def best(self) -> EvalMetrics | None:
        """The validation with the lowest loss."""
        return min(self.validations, key=lambda record: record.eval_loss, default=None)

    def charts(self) -> list[Chart]:
        """Loss first; those without a point are left out."""
        best = self.best
        note: Text | None = None
        if best and best.step:
            note = WORDS["best"].with_values(loss=f"{best.eval_loss:.3f}", step=f"{best.step:,}")
        memory = [(r.step, m / 1e9) for r in self.steps if (m := getattr(r, "memory", None))]
        kinds = [
            Chart(
                "loss",
                WORDS["loss"],
                [
                    Series(WORDS["training"], [(r.step, r.loss) for r in self.steps], "b"),
                    Series(
                        WORDS["validation"],
                        [(r.step, r.eval_loss) for r in self.validations],
                        "a",
                        dots=len(self.validations) <= 60,
                    ),
                    Series(
                        WORDS["skipped_step"],
                        [(r.step, r.skipped_loss) for r in self.skipped],
                        "c",
                        dots=True,
                        joined=False,
                    ),
                ],
                note=note,
                wide=True,
            )
        ]
        for key, points in (
            ("learning_rate", [(r.step, r.learning_rate) for r in self.steps]),
            ("grad_norm", [(r.step, r.grad_norm) for r in self.steps]),
            ("speed", [(r.step, r.examples_per_second) for r in self.steps]),
            ("memory", memory),
        ):
            kinds.append(Chart(key.replace("_", "-"), WORDS[key], [Series(WORDS[key], points)]))
        return [chart for chart in kinds if chart.shown]


def _put(records: list[Record], record: Record) -> None:
    while records and records[-1].step >= record.step:
        records.pop()
    records.append(record)
