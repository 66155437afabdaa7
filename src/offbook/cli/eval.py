"""`offbook eval`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.arguments import Checkpoint
from offbook.cli.console import say
from offbook.cli.scorecard import evaluating, put_scorecard
from offbook.inference import MAX_STRENGTH


class Kind(str, Enum):
    """What `--require` takes."""

    TOOK = "took"


NOT_AS_REQUIRED = 8


def eval(
    run: Annotated[Path, typer.Argument(help="A run directory, or an adapter with --base.")],
    checkpoint: Checkpoint = None,
    data: Annotated[
        str | None,
        typer.Option(help="Rows to judge it by; by default, those that the run held out."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows to judge it by.")] = 200,
    base: Annotated[
        str | None, typer.Option(help="The base of an adapter, or where a run's base is now.")
    ] = None,
    strength: Annotated[
        float,
        typer.Option(min=0, max=MAX_STRENGTH, help="Multiplies what the adapter adds to the base."),
    ] = 1.0,
    short: Annotated[
        bool, typer.Option("--short", help="As after a training: fewer replies, and no probes.")
    ] = False,
    require: Annotated[
        Kind | None, typer.Option(help="Exit with code 8 unless this is the verdict.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Compare a trained model with its base, and say whether the role took.

    \b
    offbook eval runs/myrole
    offbook eval runs/myrole --data other-rows.json
    offbook eval adapter-folder --base base-folder --data rows.json
    offbook eval runs/myrole --checkpoint best --strength 0.75
    offbook eval runs/myrole --require took
    """
    from offbook.evaluation.evaluate import evaluate as run_evaluation
    from offbook.evaluation.saved import write_evaluation
    from offbook.evaluation.subject import find_subject
    from offbook.report.page import write_report

    with evaluating() as progress:
        subject = find_subject(run, say, base=base, checkpoint=checkpoint, data=data, rows=rows)
        found, ledger = run_evaluation(subject, progress, strength=strength, short=short)
    if as_json:
        print(found.to_json().decode(), end="")
    else:
        put_scorecard(found)
    if subject.run is not None:
        file = write_evaluation(subject.run, found, ledger)
        say(f"figures in {file}, report in {write_report(subject.run)}")
    if require and found.verdict != require.value:
        raise typer.Exit(NOT_AS_REQUIRED)
