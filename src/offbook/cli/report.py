"""`offbook report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.console import put, waiting


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; by default RUN/report.html."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path as JSON.")] = False,
) -> None:
    """Write a run on one page: verdict, curves, scores, replies, rows and receipt.

    The page is one file that needs no network. What an evaluation has found is on it.

    \b
    offbook report runs/myrole
    offbook report runs/myrole -o myrole.html
    """
    from offbook.runs.directory import RunDirectory

    opened = RunDirectory.open(run)
    with waiting("reading the run"):
        from offbook.report.page import write_report

        file = write_report(opened, output)
    if as_json:
        print(json.dumps({"report": str(file)}))
        return
    put(f"report in {file}")
    put(f"open it in a browser: {file.resolve().as_uri()}")
