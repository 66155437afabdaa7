"""What training reports while it works: metrics and messages, to a monitor that receives them.

Only the command line prints, so training calls a `Monitor` and does not know what it does. A
`LineMonitor` makes lines of text of its reports, and gives them to a function such as `print`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

ROWS_PER_LINE = 200_000
SECONDS_PER_LINE = 30.0
SECONDS_PER_BEAT = 5.0


@dataclass(frozen=True)
class Metrics:
    """A line of `metrics.jsonl`; its keys are the fields of one of the subclasses, in their order.

    A line of a kind that this version does not know is read as this class.

    Attributes:
        step: optimizer steps done; for `SkippedStep` and `SmallerMicroBatches`, the step itself.
    """

    step: int


@dataclass(frozen=True)
class StepMetrics(Metrics):
    """Written every `train.logging_steps` steps, and after the last one.

    Attributes:
        epoch: steps done, in epochs.
        loss: mean over the supervised tokens since the last such line, in nats.
        grad_norm: norm of the last step's gradients before clipping.
        learning_rate: of the last step.
        examples_per_second: of the last step.
        memory: bytes in use so far at the most, of the GPU or of the process; 0 in runs of earlier
            versions.
    """

    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    examples_per_second: float
    memory: int = 0


@dataclass(frozen=True)
class RowLosses(Metrics):
    """Written after each step of the first pass over the data.

    Attributes:
        rows: indices of the step's examples, among those that are trained on. An example without a
            supervised token is left out.
        losses: of each before the update, in nats per supervised token; with dropout, as in
            training.
    """

    rows: list[int]
    losses: list[float]


@dataclass(frozen=True)
class EvalMetrics(Metrics):
    """Written after an evaluation on the validation rows.

    Attributes:
        eval_loss: mean over their supervised tokens, in nats.
    """

    eval_loss: float


@dataclass(frozen=True)
class SkippedStep(Metrics):
    """Written when a step's update was skipped because of its loss.

    Attributes:
        skipped_loss: loss of the step, in nats per token.
        median_loss: median of the steps before it, which it was compared with.
    """

    skipped_loss: float
    median_loss: float


@dataclass(frozen=True)
class SmallerMicroBatches(Metrics):
    """Written when memory was not enough for a step's micro-batches.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch from now on.
    """

    micro_batch_tokens: int


class Monitor:
    """Receives what training reports. Subclass it and override the methods you need."""

    def announce(self, text: str) -> None:
        """Something the user should know, in one line."""

    def busy(self, what: str) -> None:
        """Something begins that may take long; the next report of another kind ends it."""

    def reading(self, rows: int) -> None:
        """Rows tokenized so far."""

    def begin(self, step: int, total: int) -> None:
        """Training starts after `step` of `total` optimizer steps."""

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        """An optimizer step is done; `loss` is the mean since the last `StepMetrics`."""

    def metrics(self, record: Metrics) -> None:
        """A line was added to `metrics.jsonl`."""


class LineMonitor(Monitor):
    """Writes what training reports as lines of text; a context manager.

    For steps, there is a line after the first one, with each line of `metrics.jsonl`, and at least
    every 30 seconds. While something slow goes on, there is a line every 5 seconds.

    Args:
        write: receives each line, such as `print`.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._heartbeat = Heartbeat(write)
        self._rows_told = 0
        self._step_told, self._time_told = 0, 0.0
        self.pace = Pace()

    def __enter__(self) -> LineMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heartbeat.end()

    def announce(self, text: str) -> None:
        self._heartbeat.end()
        self._write(text)

    def busy(self, what: str) -> None:
        self._heartbeat.begin(what)

    def reading(self, rows: int) -> None:
        if rows >= self._rows_told + ROWS_PER_LINE:
            self._rows_told = rows
            self._write(f"{rows:,} rows read")

    def begin(self, step: int, total: int) -> None:
        self._heartbeat.end()
        self._step_told = step
        self.pace.begin(step, total)

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        self._heartbeat.end()
        self.pace.step(step)
        if self.pace.steps == 1 or time.monotonic() >= self._time_told + SECONDS_PER_LINE:
            self._tell_step(step, loss, examples_per_second)

    def metrics(self, record: Metrics) -> None:
        self._heartbeat.end()
        if isinstance(record, EvalMetrics):
            self.pace.resume()
            self._write(f"step {record.step}: validation loss {record.eval_loss:.3f}")
        elif isinstance(record, StepMetrics) and record.step != self._step_told:
            self._tell_step(record.step, record.loss, record.examples_per_second)

    def _tell_step(self, step: int, loss: float, examples_per_second: float) -> None:
        self._step_told, self._time_told = step, time.monotonic()
        self._write(
            f"step {step}/{self.pace.total}: loss {loss:.3f}, "
            f"{examples_per_second:.1f} examples/s, left {self.pace.left()}"
        )


class Pace:
    """How long the steps of a run take, and how long those that are left will.

    Attributes:
        total: optimizer steps of the run.
        done: how many of them are done.
        steps: how many were timed.
    """

    def __init__(self) -> None:
        self.total = self.steps = self.done = 0
        self._seconds = self._since = 0.0

    def begin(self, step: int, total: int) -> None:
        """The run is at this step; the next one begins."""
        self.done, self.total, self.steps, self._seconds = step, total, 0, 0.0
        self.resume()

    def step(self, step: int) -> None:
        """A step is done."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self.done, self.steps = step, self.steps + 1

    def resume(self) -> None:
        """Something else, such as a validation, is done; what it took is not counted."""
        self._since = time.monotonic()

    def left(self) -> str:
        """The time that is left, as `hours:minutes:seconds`, from the first step on."""
        seconds = round(self._seconds / max(self.steps, 1) * (self.total - self.done))
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class Heartbeat:
    """Writes every few seconds, in a thread, that something slow is still going on.

    Args:
        write: receives the lines.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._ended = threading.Event()

    def begin(self, what: str) -> None:
        """From now on, this is going on, and nothing else."""
        self.end()
        self._ended = threading.Event()
        threading.Thread(
            target=self._beat, args=(what, self._ended), name="offbook heartbeat", daemon=True
        ).start()

    def end(self) -> None:
        """Nothing slow is going on."""
        self._ended.set()

    def _beat(self, what: str, ended: threading.Event) -> None:
        started = time.monotonic()
        while not ended.wait(SECONDS_PER_BEAT):
            self._write(f"{what}: {time.monotonic() - started:.0f} s so far")
