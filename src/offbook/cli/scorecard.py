"""An evaluation on a terminal: the verdict, and a table of what it rests on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from offbook.cli.console import NARROW, err, out, put, say
from offbook.errors import OffbookError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from offbook.evaluation.record import Evaluation

SECONDS_PER_LINE = 5.0
STYLES = {"took": "bold green", "cannot tell": "bold yellow"}


@contextmanager
def evaluating() -> Iterator[Callable[[str, int, int], None]]:
    """Show what an evaluation is doing: a bar on a terminal; elsewhere, a line for each part."""
    if not err.is_terminal:
        told, at = "", 0.0

        def tell(what: str, done: int, total: int) -> None:
            nonlocal told, at
            if what != told or time.monotonic() > at + SECONDS_PER_LINE:
                say(f"{what}: {done} of {total}", "dim")
                told, at = what, time.monotonic()

        yield tell
        return
    facts = TextColumn("{task.description}", table_column=Column(no_wrap=True))
    with Progress(BarColumn(bar_width=None), facts, console=err, transient=True) as bar:
        task = bar.add_task("evaluating")
        yield lambda what, done, total: bar.update(
            task, description=f"{what} {done}/{total}", completed=done, total=total
        )


def put_scorecard(found: Evaluation) -> None:
    """Print the verdict and the scores."""
    from offbook.report.scorecard import questions

    for finding in found.findings:
        put(finding.kind, STYLES.get(finding.kind, "bold red"))
        put(f"  {finding.because}")
        if finding.advice:
            put(f"  {finding.advice}")
    narrow = out.width < NARROW
    table = Table(box=box.HORIZONTALS, pad_edge=False)
    table.add_column("95% intervals")
    for name in ("base", "tuned") if narrow else ("base", "tuned", "change", "prompts"):
        table.add_column(name, justify="right")
    for row in (row for question in questions(found) for row in question.rows):
        cells = [row.value(row.base), row.value(row.tuned)]
        if not narrow:
            cells += [row.interval(row.change, signed=True), row.n]
        table.add_row(Text(row.name.en), *cells)
    out.print(table)
    if found.unanswered:
        prompts = "prompt is" if found.unanswered == 1 else "prompts are"
        put(f"{found.unanswered} held-out {prompts} not answered: too long for the base's context")
    if found.voice and found.voice.in_voice is None:
        accuracy = found.voice.accuracy
        put(
            f"no share of replies in the role's voice: the classifier is right in "
            f"{accuracy.value:.0%} of {accuracy.n} prompts, which is not sure enough"
        )
    if found.best_strength is not None:
        put(f"best adapter strength, between role and forgetting: {found.best_strength:g}")
    remarked = [line for line in found.ledger if line.remark]
    for line in remarked[:5]:
        put(f"{line.source}: {line.remark}")
    if len(remarked) > 5:
        put(f"and {len(remarked) - 5} more rows in the report")


def put_short_scorecard(run: Path) -> None:
    """Evaluate a run that has just been trained, in short, and print what was found.

    The run is complete: whatever happens here, its training has succeeded.
    """
    from offbook.evaluation.evaluate import evaluate
    from offbook.evaluation.saved import write_evaluation
    from offbook.evaluation.subject import find_subject
    from offbook.report.page import write_report

    in_full = f"offbook eval {quoted(run)}"
    say("comparing it with the base; Ctrl-C skips that", "dim")
    try:
        with evaluating() as progress:
            subject = find_subject(run, lambda text: None)
            found, ledger = evaluate(subject, progress, short=True)
        assert subject.run is not None
        write_evaluation(subject.run, found, ledger)
        report = write_report(subject.run)
    except OffbookError as error:
        say(f"not evaluated: {error}")
        return
    except KeyboardInterrupt:
        say(f"not evaluated; do it later with\n    {in_full}")
        return
    put_scorecard(found)
    put(f"report in {report}")
    put(f"evaluate it in full:\n    {in_full}")
