"""What a report is made of, read from a run directory."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from offbook.errors import CheckpointError, quoted
from offbook.evaluation.record import Evaluation
from offbook.evaluation.saved import read_evaluation
from offbook.report.charts import Chart, Series
from offbook.report.curves import Curves
from offbook.report.rows import TrainingRows, read_rows
from offbook.report.scorecard import Question, questions
from offbook.report.words import WORDS, Text
from offbook.runs.directory import RunDirectory
from offbook.runs.places import BASE
from offbook.runs.receipt import Receipt
from offbook.settings.config import Config
from offbook.tokens.language import CHARACTERS
from offbook.training.schedule import Schedule

Facts = list[tuple[Text | str, object]]


@dataclass(frozen=True)
class Contents:
    """What is known of a run. The templates show its attributes.

    Attributes:
        run: the run.
        config, receipt: its settings, and what went in; those of no run where it has not begun.
        curves: what was logged.
        evaluation: what was found; None where it was not evaluated.
        evaluation_problem: why an evaluation cannot be read.
        looked_at: its training rows; a reason where they were not read.
        begun: whether there is a run.
        live: whether the page follows the run.
        problem: why its files cannot be read.
    """

    run: RunDirectory
    config: Config = field(default_factory=Config)
    receipt: Receipt = field(default_factory=Receipt)
    curves: Curves = field(default_factory=Curves)
    evaluation: Evaluation | None = None
    evaluation_problem: str | None = None
    looked_at: TrainingRows | str | None = None
    begun: bool = False
    live: bool = False
    problem: str | None = None

    @classmethod
    def read(
        cls, run: RunDirectory, looked_at: TrainingRows | str | None = None, live: bool = False
    ) -> Contents:
        """What is in a run directory.

        Args:
            run: to read.
            looked_at: its training rows, where they were looked at before.
            live: whether the page follows the run.

        Raises:
            CheckpointError: when one of its files is damaged.
        """
        evaluation, problem = None, None
        try:
            evaluation = read_evaluation(run)
        except CheckpointError as error:
            problem = str(error)
        return cls(
            run=run,
            config=run.config(),
            receipt=run.receipt(),
            curves=Curves.read(run),
            evaluation=evaluation,
            evaluation_problem=problem,
            looked_at=read_rows(run) if looked_at is None else looked_at,
            begun=True,
            live=live,
        )

    # What it is.

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def role(self) -> str:
        """The data that it was trained on."""
        return self.config.data.name if self.begun else ""

    @property
    def base(self) -> str:
        base = self.config.model.base
        return (Path(base).name if Path(base).is_absolute() else base) if self.begun else ""

    @property
    def written(self) -> str | None:
        """When the last line was logged; by the clock of this machine."""
        return written(self.run)

    @property
    def language(self) -> str:
        """`zh` where the texts of the run are mostly Chinese, else `en`."""
        texts = [reply.reference for reply in self.evaluation.replies] if self.evaluation else []
        if isinstance(self.looked_at, TrainingRows):
            texts += [token for span in self.looked_at.spans for token in span.tokens]
        whole = "".join("".join(texts).split())
        return "zh" if 2 * len(CHARACTERS.findall(whole)) > len(whole) else "en"

    # How far it is.

    @property
    def finished(self) -> bool:
        return self.run.finished

    @property
    def step(self) -> int:
        return self.curves.step

    @property
    def total(self) -> int | None:
        """Optimizer steps of the whole run; None where an old receipt does not say."""
        return total_steps(self.config, self.receipt)

    @property
    def left(self) -> str | None:
        """The time that is left, at the speed of the last logged step."""
        if self.finished or not self.total or not self.curves.steps:
            return None
        speed = self.curves.steps[-1].examples_per_second
        if speed <= 0:
            return None
        seconds = (self.total - self.step) * self.config.train.batch_size / speed
        return str(datetime.timedelta(seconds=round(max(seconds, 0.0))))

    # What came out.

    @property
    def validation(self) -> Text | None:
        """The validation loss before and after, in a sentence."""
        before, after = self.curves.before, self.curves.after
        if before is None or after is None:
            return None
        change = f"{after / before - 1:+.0%}".replace("-", "−") if before else ""
        return WORDS["validation_fell"].with_values(
            before=f"{before:.3f}", after=f"{after:.3f}", change=change
        )

    @property
    def subject(self) -> Text:
        """What was evaluated."""
        evaluation = self.evaluation
        if evaluation is None or evaluation.subject == "result":
            return WORDS["the_result"]
        return WORDS["of_step"].with_values(step=evaluation.step)

    @property
    def outdated(self) -> bool:
        """Whether the run has a later result than the one that was evaluated."""
        done = self.evaluation
        is_result = done is not None and done.subject == "result" and done.step is not None
        return bool(is_result and done and done.step != self.step and self.finished)

    @cached_property
    def charts(self) -> list[Chart]:
        return self.curves.charts()

    @property
    def remarks(self) -> Iterator[Text]:
        """What else happened in training."""
        if skipped := self.curves.skipped:
            steps = ", ".join(str(record.step) for record in skipped[:20])
            steps += ", …" if len(skipped) > 20 else ""
            yield WORDS["skipped"].with_values(count=len(skipped), steps=steps)
        for record in self.curves.smaller:
            yield WORDS["smaller"].with_values(
                step=record.step, tokens=f"{record.micro_batch_tokens:,}"
            )

    @property
    def questions(self) -> list[Question]:
        return list(questions(self.evaluation)) if self.evaluation else []

    @property
    def drill(self) -> Chart | None:
        """How much each turn of a long conversation sounds like the role."""
        in_role = self.evaluation.in_role if self.evaluation else None
        if in_role is None or not in_role.drill:
            return None
        points = [(float(turn), value) for turn, value in enumerate(in_role.drill, 1)]
        line = Series(WORDS["tuned"], points, dots=True)
        return Chart("drill", WORDS["drill"], [line], x=WORDS["turn"])

    @property
    def strength(self) -> Chart | None:
        """Loss against KL, at each strength."""
        if not self.evaluation or not self.evaluation.strengths:
            return None
        measured = sorted(self.evaluation.strengths, key=lambda one: one.strength)
        best = self.evaluation.best_strength
        lines = [
            Series(
                WORDS["strength"],
                [(one.kl.value, one.loss.value) for one in measured],
                dots=True,
                labels=[f"{one.strength:g}" for one in measured],
            ),
            Series(
                WORDS["best_one"],
                [(one.kl.value, one.loss.value) for one in measured if one.strength == best],
                "c",
                dots=True,
                joined=False,
            ),
        ]
        return Chart("strengths", WORDS["loss_at_strength"], lines, x=WORDS["kl"], wide=True)

    # The training rows.

    @property
    def rows(self) -> TrainingRows | None:
        return self.looked_at if isinstance(self.looked_at, TrainingRows) else None

    @property
    def unread(self) -> str | None:
        """Why the rows were not read."""
        return self.looked_at if isinstance(self.looked_at, str) else None

    # Commands.

    @property
    def evaluate(self) -> str:
        return f"offbook eval {quoted(self.run.path)}"

    @property
    def resume(self) -> str:
        return self.run.command

    @property
    def check(self) -> str:
        return f"offbook check {quoted(self.run.config_file)}"

    @property
    def again(self) -> str:
        """The command that trains the same adapter again."""
        other = self.run.path.with_name(f"{self.name}-again")
        words = [str(self.run.config_file), f"output_dir={other}"]
        if commit := self.receipt.commits.get(BASE):
            words.append(f"model.revision={commit}")
        return f"offbook train {' '.join(map(quoted, words))}"


def total_steps(config: Config, receipt: Receipt) -> int | None:
    """Optimizer steps of a whole run; None where its receipt does not say how many rows it has."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    if receipt.rows is None or not receipt.rows.training:
        return None
    return Schedule.of(receipt.rows.training, config).total_steps(config.train)


def written(run: RunDirectory) -> str | None:
    """When the last line of a run was logged, or the run was begun; by this machine's clock."""
    for file in (run.metrics_file, run.receipt_file):
        if file.exists():
            at = datetime.datetime.fromtimestamp(file.stat().st_mtime)
            return at.isoformat(" ", "minutes")
    return None
