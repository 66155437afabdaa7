"""`offbook watch`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from offbook.cli.console import put, say, waiting
from offbook.signals import handling


def watch(
    run: Annotated[Path, typer.Argument(help="A run directory; it need not be there yet.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = 0,
) -> None:
    """Show the report of a run in the browser while it is trained, by whatever process.

    Only this machine reaches the page. Ctrl-C ends it, and does not touch the training.

    \b
    offbook watch runs/myrole
    offbook watch runs/myrole --port 8770
    """
    ended = threading.Event()
    with handling(lambda number, frame: ended.set()):
        with waiting("reading the run"):
            from offbook.report.watch import Server, Watcher
            from offbook.runs.directory import RunDirectory

            watched = RunDirectory(run)
            watcher = Watcher(watched)
            watcher.look()
        with Server(watcher.state, port) as server:
            if not watched.begun:
                say(f"there is no run in {run} yet; the page waits for it", "dim")
            put(f"page: {server.url}")
            watcher.follow(ended)
    say("stopped", "dim")
