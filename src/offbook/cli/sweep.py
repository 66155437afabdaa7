"""`offbook sweep`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from offbook.cli.arguments import Settings, file_and_settings, refuse_rows
from offbook.cli.console import ProgressMonitor, out, put, say
from offbook.cli.train import exit_code, stop_signals
from offbook.errors import quoted

if TYPE_CHECKING:
    from offbook.training.sweep import Sweep


def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file, or the directory of a run.")
    ] = None,
    settings: Settings = None,
    full: Annotated[
        bool, typer.Option("--full", help="Let each run take all its steps, not only the best.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train all runs again, and replace those there are.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Train runs with different settings on one base, and keep the best one's.

    Settings with several values are combined. All runs take the first steps, the better half by
    validation loss goes on, and so on until one is left. Each is a run of its own in the output
    directory, and best.yaml there has the settings of the best. The same command goes on with a
    sweep that was stopped.

    \b
    offbook sweep myrole/config.yaml train.learning_rate=1e-4,3e-4 lora.r=8,16
    offbook sweep myrole/config.yaml lora.r=4,8,16,32 train.max_steps=200 --full
    """
    from offbook.settings.config import Config

    config, settings = file_and_settings(config, settings)
    refuse_rows("sweep", config, settings)
    with ProgressMonitor() as monitor, stop_signals(monitor.pace) as received:
        monitor.busy("starting")
        from offbook.training.sweep import parse_grid
        from offbook.training.sweep import sweep as run_sweep

        grid, others = parse_grid(settings)
        if config is not None and config.is_dir():
            config = config / "config.yaml"
        common = Config.load(config, others)
        found = run_sweep(
            common,
            grid,
            full=full,
            overwrite=overwrite,
            monitor=monitor,
            should_stop=lambda: bool(received),
        )
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _print(found, Path(common.output_dir))
    raise typer.Exit(0 if found.finished else exit_code(received[0]))


def _print(found: Sweep, folder: Path) -> None:
    from offbook.report.compare import MOST_RUNS, Comparison
    from offbook.report.page import write_page

    table = Table(box=None, padding=(0, 2, 0, 0))
    keys = list(found.best.settings)
    for name in (*keys, "steps", "validation loss", "seconds"):
        table.add_column(name, justify="left" if name in keys else "right", overflow="fold")
    for one in found.candidates:
        loss = "failed" if one.problem else "" if one.loss is None else f"{one.loss:.4f}"
        cells = [*one.settings.values(), f"{one.steps:,}", loss, f"{math.ceil(one.seconds):,}"]
        table.add_row(*map(Text, cells))
    out.print(table)
    if not found.finished:
        say("stopped; the same command goes on")
        return
    best_runs = [folder / one.name for one in found.candidates[:MOST_RUNS]]
    page = write_page(folder / "sweep.html", Comparison.read(best_runs).render())
    put(f"the best settings are in {folder / 'best.yaml'}, the runs side by side in {page}")
    put(f"talk to its run:\n    offbook chat {quoted(folder / found.best.name)}")
