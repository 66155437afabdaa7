"""How commands print: two consoles, safe text, and the progress of a run."""

from __future__ import annotations

import time
import unicodedata
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from offbook.monitor import EvalMetrics, Metrics, Monitor, StepMetrics

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)  # progress and notices; stdout is for results

# These reorder the text after them, so that a reply could look like something else.
DIRECTION_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Text from a model or a file with its control characters escaped.

    A terminal obeys control characters: they can change its title or hide text. Halves of surrogate
    pairs cannot be printed at all.
    """
    return "".join(
        f"\\x{ord(char):02x}"
        if (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")
        or char in DIRECTION_CONTROLS
        else char
        for char in text
    )


def say(text: str, style: str | None = None) -> None:
    """Print a notice to stderr, without markup and wrapping."""
    err.print(printable(text), style=style, markup=False, soft_wrap=True)


class RowsRead:
    """Reports the progress of reading a large data set, every `every` rows."""

    def __init__(self, every: int = 200_000) -> None:
        self._every = self._next = every

    def __call__(self, rows: int) -> None:
        """Report `rows`, the number of rows read so far, when it is time."""
        if rows >= self._next:
            say(f"{rows:,} rows read", "dim")
            self._next = rows + self._every


class ProgressMonitor(Monitor):
    """A progress bar on a terminal; elsewhere, a line for each logged step."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}  {task.fields[facts]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
        )
        self._task: TaskID | None = None
        self._rows_read = RowsRead()
        self._first, self._total, self._started = 0, 0, 0.0

    def __enter__(self) -> ProgressMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._bar.stop()

    def announce(self, text: str) -> None:
        say(text, "dim")

    def reading(self, rows: int) -> None:
        self._rows_read(rows)

    def begin(self, step: int, total: int) -> None:
        self._first, self._total, self._started = step, total, time.monotonic()
        if err.is_terminal:
            self._task = self._bar.add_task("training", total=total, completed=step, facts="")
            self._bar.start()

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        if self._task is not None:
            facts = f"loss {loss:.3f}  {examples_per_second:.1f} examples/s"
            self._bar.update(self._task, completed=step, facts=facts)

    def metrics(self, record: Metrics) -> None:
        if isinstance(record, EvalMetrics):
            say(f"step {record.step}: validation loss {record.eval_loss:.3f}")
        elif isinstance(record, StepMetrics) and not err.is_terminal:
            pace = (time.monotonic() - self._started) / (record.step - self._first)
            left = time.strftime("%H:%M:%S", time.gmtime(pace * (self._total - record.step)))
            say(
                f"step {record.step}/{self._total}: loss {record.loss:.3f}, "
                f"{record.examples_per_second:.1f} examples/s, left {left}"
            )
