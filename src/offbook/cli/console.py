"""How commands print: two consoles, safe text in whole words, and the progress of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from offbook.errors import printable as printable
from offbook.monitor import Heartbeat, LineMonitor, Metrics, StepMetrics

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)  # progress and notices; stdout is for results

NARROW = 72  # columns; below, tables become lines and the bar has fewer facts

WIDE = re.compile(
    "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60"
    "\uffe0-\uffe6"
    "\U0001f300-\U0001faff\U00020000-\U0003fffd]"
)
# A newline; a wide character or a word, with the white space before it; white space at the end.
UNITS = re.compile(rf"\n|[^\S\n]*(?:{WIDE.pattern}|[^\s{WIDE.pattern[1:-1]}]+)|[^\S\n]+")
# The same, where a path in quotes is one word: spaces that fill a row would change it.
COMMAND_UNITS = re.compile(rf"[^\S\n]*(?:[^\s']*[=`(])?'[^'\n]*'\S*|{UNITS.pattern}")

PROGRAMS = "offbook|pip|hf|git|modelscope|ollama|llama-server"
# A command with arguments in a sentence, and the mark after it. A name in quotes may have any mark.
COMMAND = re.compile(
    rf""" *`((?:{PROGRAMS}) [^\s`]+ (?:'[^'\n]*'|"[^"\n]*"|[^`'"\n])+)`[,;.]? *(\n|$)?"""
)
COMMAND_LINE = re.compile(rf" *(?:{PROGRAMS}) ")


class WordWrap:
    """Keeps words whole at the edge of a terminal, while text arrives piece by piece.

    A row is filled up with spaces, not ended by a newline, so that a command that takes several
    rows is still one line when it is copied. A word that is longer than a row is left to the
    terminal, and so is Chinese, which may be broken anywhere.

    Args:
        width: of the terminal, in columns.
        column: where the text begins.
    """

    def __init__(self, width: int, column: int = 0) -> None:
        self._width, self._column, self._held = width, column, ""

    def feed(self, text: str) -> str:
        """What can be shown now; a last word is held until it is complete."""
        units = UNITS.findall(self._held + text)
        whole = not units or units[-1] == "\n" or WIDE.search(units[-1])
        self._held = "" if whole else units.pop()
        return "".join(map(self._place, units))

    def end(self) -> str:
        """What is held."""
        held, self._held = self._held, ""
        return self._place(held)

    def whole(self, text: str) -> str:
        """All of a text, which may have commands in it."""
        return "".join(map(self._place, COMMAND_UNITS.findall(text)))

    def _place(self, unit: str) -> str:
        if unit == "\n":
            self._column = 0
            return unit
        word = unit.lstrip()
        spaces, size = len(unit) - len(word), cell_len(word)
        is_wide = WIDE.search(word) is not None
        left = self._width - self._column
        # One column stays free, so that there is a space between the last word and the next.
        if not is_wide and 0 < left < self._width and left <= spaces + size and size < self._width:
            self._column = size
            return " " * left + word
        self._column += spaces + size
        if self._column > self._width:
            self._column = size if is_wide else (self._column - 1) % self._width + 1
        return unit


def say(text: str, style: str | None = None) -> None:
    """Print a notice to stderr, without markup."""
    _print(err, text, style)


def put(text: str, style: str | None = None) -> None:
    """Print a result to stdout, without markup."""
    _print(out, text, style)


def _print(console: Console, text: str, style: str | None) -> None:
    lines = _commands_apart(printable(text)).split("\n")
    if console.is_terminal:
        # A command is left to the terminal, which copies its rows as one line.
        lines = [
            line if COMMAND_LINE.match(line) else WordWrap(console.width).whole(line)
            for line in lines
        ]
    console.print("\n".join(lines), style=style, markup=False, soft_wrap=True)


def _commands_apart(text: str) -> str:
    """Text with each command on a line of its own, as it is typed; `offbook train` is a name."""
    return COMMAND.sub(lambda m: f"\n    {m[1]}" + ("\n" if m[2] is None else m[2]), text)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say at once that something slow begins, and every few seconds that it is going on."""
    say(what, "dim")
    heartbeat = Heartbeat(_say_dim)
    heartbeat.begin(what)
    try:
        yield
    finally:
        heartbeat.end()


def _say_dim(text: str) -> None:
    say(text, "dim")


def make_bar() -> Progress:
    """A progress bar with the facts beside it; it has a row for each task."""
    facts = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    return Progress(BarColumn(bar_width=None), facts, console=err)


class ProgressMonitor(LineMonitor):
    """A progress bar on a terminal; elsewhere, lines.

    Args:
        name: of the run, where several are trained together; it precedes all that is shown.
        bar: that they share.
    """

    def __init__(self, name: str = "", bar: Progress | None = None) -> None:
        super().__init__(lambda text: say(self._name + text))
        self._name = f"{name}: " if name else ""
        self._bar = bar or make_bar()
        self._task: TaskID | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._task is not None:
            self._bar.stop()

    def announce(self, text: str) -> None:
        self._heartbeat.end()
        say(self._name + text, "dim")

    def begin(self, step: int, total: int) -> None:
        super().begin(step, total)
        if err.is_terminal:
            if self._task is not None:  # of a run before, in a sweep
                self._bar.remove_task(self._task)
            facts = f"{self._name}{step}/{total}"
            self._task = self._bar.add_task(facts, total=total, completed=step)
            self._bar.start()

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        if self._task is None:
            super().step(step, loss, examples_per_second)
            return
        self._heartbeat.end()
        self.pace.step(step)
        speed = f"{examples_per_second:.1f} examples/s  " if err.width >= NARROW else ""
        facts = f"{step}/{self.pace.total}  loss {loss:.3f}  {speed}left {self.pace.left()}"
        self._bar.update(self._task, completed=step, description=self._name + facts)

    def metrics(self, record: Metrics) -> None:
        if self._task is None or not isinstance(record, StepMetrics):
            super().metrics(record)
