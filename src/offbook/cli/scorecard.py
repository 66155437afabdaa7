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

    from offbook.evaluation.record import Compared, Evaluation

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
    for name, compared, percent in scores(found):
        cells = [_cell(figure.value, percent) for figure in (compared.base, compared.tuned)]
        if not narrow:
            change = compared.change
            low, high = _cell(change.low, percent, "+"), _cell(change.high, percent, "+")
            cells += [f"{low} to {high}", f"{change.n}"]
        table.add_row(Text(name), *cells)
    out.print(table)
    if found.voice and found.voice.in_voice is None:
        accuracy = found.voice.accuracy
        put(
            f"no share of replies in the role's voice: the classifier is right in "
            f"{accuracy.value:.0%} of {accuracy.n} prompts, which is not sure enough"
        )
    if found.best_strength is not None:
        put(f"best adapter strength, between role and forgetting: {found.best_strength:g}")
    remarked = [row for row in found.ledger if row.remark]
    for row in remarked[:5]:
        put(f"{row.source}: {row.remark}")
    if len(remarked) > 5:
        put(f"and {len(remarked) - 5} more rows in the report")


def put_short_scorecard(run: Path) -> None:
    """Evaluate a run that has just been trained, in short, and print what was found.

    The run is complete: whatever happens here, its training has succeeded.
    """
    from offbook.evaluation.evaluate import evaluate, write_evaluation
    from offbook.evaluation.subject import find_subject
    from offbook.report.page import write_report

    in_full = f"offbook eval {quoted(run)}"
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


def scores(found: Evaluation) -> Iterator[tuple[str, Compared, bool]]:
    """The rows of a scorecard: what it is, of base and tuned model, and whether it is a share."""
    yield "loss, nats per token", found.lines.loss, False
    yield "bits per byte", found.lines.bits, False
    if found.lines.training:
        yield "loss on training rows", found.lines.training, False
    if voice := found.voice:
        if voice.in_voice:
            yield "replies in the role's voice", voice.in_voice, True
        yield "chrF with the reference", voice.chrf, False
        yield "characters of a reply", voice.length, False
        yield "openings of their own", voice.openings, True
        yield "repetition within a reply", voice.repetition, True
    if found.in_role:
        yield "answers that give the model away", found.in_role.leaks, True
    if found.stops:
        yield "replies that end by themselves", found.stops, True
    if found.copied:
        yield "replies that copy a line", found.copied.share, True
    yield "loss on general answers", found.forgetting.loss, False
    if found.forgetting.in_voice:
        yield "general answers in the role's voice", found.forgetting.in_voice, True


def _cell(value: float, percent: bool, sign: str = "") -> str:
    if percent:
        return f"{value:{sign}.0%}"
    return f"{value:{sign}.0f}" if abs(value) >= 100 else f"{value:{sign}.2f}"
