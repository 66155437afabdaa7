"""`offbook runs`: list runs, compare them, and remove one."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from offbook.cli.console import NARROW, out, printable, put, say
from offbook.files.strict_json import to_json

if TYPE_CHECKING:
    from offbook.report.compare import Comparison, Line
    from offbook.report.listing import Summary

LIST = "list"
FOLDER = Path("runs")


class _ListByDefault(TyperGroup):
    """`offbook runs` and `offbook runs FOLDER` list runs, as `offbook runs list FOLDER` does."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        asks_for_help = bool(arguments) and arguments[0] in context.help_option_names
        if not asks_for_help and (not arguments or arguments[0] not in self.commands):
            arguments = [LIST, *arguments]
        return super().parse_args(context, arguments)


def group(rich_markup_mode: str | None) -> typer.Typer:
    """The command with its sub-commands."""
    app = typer.Typer(
        name="runs",
        cls=_ListByDefault,
        rich_markup_mode=rich_markup_mode,  # type: ignore[arg-type]
        help=runs.__doc__,
    )
    app.callback()(runs)
    app.command(LIST)(list_runs)
    app.command()(compare)
    app.command()(remove)
    return app


def runs() -> None:
    """List the runs in a folder; compare them, or remove one.

    \b
    offbook runs
    offbook runs FOLDER
    offbook runs compare runs/myrole runs/other
    offbook runs remove runs/other
    """


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs are.")] = FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """List the runs in a folder, and in the folders below.

    \b
    offbook runs
    offbook runs list runs --json
    """
    from offbook.report.listing import find_runs, summarize

    found = [summarize(path) for path in find_runs(folder)]
    if as_json:
        print(to_json([{**asdict(one), "run": str(one.run)} for one in found]))
        return
    if not found:
        put(f"no runs in {folder}")
        return
    names = ("run", "rows", "base", "steps", "validation loss", "verdict", "size", "written")
    if out.width < NARROW or not out.is_terminal:
        for one in found:
            put("  ".join(filter(None, _cells(one))))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(*(Text(printable(cell)) for cell in _cells(one)))
    out.print(table)


def _cells(one: Summary) -> list[str]:
    """A run as the cells of a table."""
    if one.problem:
        return [str(one.run), one.problem, "", "", "", "", _size(one.size), one.written or ""]
    steps = f"{one.step:,}" if one.finished or not one.steps else f"{one.step:,} of {one.steps:,}"
    losses = [f"{loss:.3f}" for loss in (one.before, one.after) if loss is not None]
    return [
        str(one.run),
        one.data,
        one.base,
        steps,
        " → ".join(losses),
        one.verdict or "",
        _size(one.size),
        one.written or "",
    ]


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run directories.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write a page with the curves, such as a.html."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare runs: settings that differ, losses, and what evaluations have found.

    Where runs have answered the same held-out prompts, their replies are compared prompt by prompt
    with those of the first run, which tells smaller differences from noise.

    \b
    offbook runs compare runs/myrole runs/other
    offbook runs compare runs/myrole runs/other -o compare.html
    """
    from offbook.report.compare import Comparison
    from offbook.report.page import write_page

    comparison = Comparison.read(paths)
    if output is not None:
        write_page(output, comparison.render())
    if as_json:
        print(to_json(_as_json(comparison)))
        return
    names = [run.name for run in comparison.runs]
    _print_lines("settings that differ", names, comparison.differences())
    _print_lines("losses", names, comparison.losses())
    for text, lines in comparison.scores():
        _print_lines(text.en, names, lines)
    for pair in comparison.pairings():
        put(f"\n{pair.name} minus {names[0]}, on {pair.n} prompts that both answered", "bold")
        for row in pair.rows:
            put(
                f"  {row.name}: {row.value(row.change, signed=True)} "
                f"({row.interval(row.change, signed=True)}), {row.judgement}"
            )
    if output is not None:
        put(f"\npage in {output}")


def _print_lines(title: str, names: list[str], lines: list[Line]) -> None:
    """A table with a column for each run; lines of text where there is no room."""
    put(f"\n{title}", "bold")
    if not lines:
        put("  none")
    for line in lines if out.width < NARROW or not out.is_terminal else ():
        put(f"  {line.name}")
        for number, (name, value) in enumerate(zip(names, line.values, strict=True)):
            put(f"    {name}: {value}{_interval(line, number)}")
    if out.width >= NARROW and out.is_terminal and lines:
        table = Table(box=None, padding=(0, 2, 0, 2))
        for name in ("", *names):
            table.add_column(Text(printable(name)), overflow="fold")
        for line in lines:
            values = [f"{value}{_interval(line, k)}" for k, value in enumerate(line.values)]
            table.add_row(*(Text(printable(str(cell))) for cell in (line.name, *values)))
        out.print(table)


def _interval(line: Line, number: int) -> str:
    return f" ({line.intervals[number]})" if line.intervals and line.intervals[number] else ""


def _as_json(comparison: Comparison) -> dict[str, object]:
    def lines(found: list[Line]) -> dict[str, list[str]]:
        return {str(line.name): line.values for line in found}

    return {
        "runs": [run.name for run in comparison.runs],
        "differences": lines(comparison.differences()),
        "losses": lines(comparison.losses()),
        "scores": {text.en: lines(found) for text, found in comparison.scores()},
        "paired": {
            pair.name: {row.key: asdict(row.change) for row in pair.rows if row.change}
            for pair in comparison.pairings()
        },
    }


def remove(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run: its settings, metrics, checkpoints, adapter, evaluation and report.

    Other files in the folder stay, such as exports, and rows that were corrected while it was
    served.

    \b
    offbook runs remove runs/other
    """
    from offbook.report.listing import summarize
    from offbook.runs.directory import RunDirectory

    found = RunDirectory(run)
    if not found.receipt_file.is_file():
        RunDirectory.open(run)  # which says what is wrong
    if not yes:
        say("  ".join(filter(None, _cells(summarize(run)))))
        say(f"remove the run in {run}? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing was removed")
            raise typer.Exit(1)
    left = found.remove()
    put(f"removed the run in {run}")
    for path in left:
        say(f"left there: {path}")
