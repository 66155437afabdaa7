"""`offbook train --many`: several runs on one base, and how each ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from offbook.cli.console import ProgressMonitor, make_bar, put, say
from offbook.cli.train import exit_code, load_config, report, stop_signals
from offbook.errors import ConfigError, quoted

if TYPE_CHECKING:
    from offbook.training.many import Ending


def train_many_files(
    arguments: Sequence[str], *, resume: bool, overwrite: bool, evaluate: bool, as_json: bool
) -> int:
    """Train a run for each configuration, together, with progress on stderr.

    Args:
        arguments: files or run directories, and settings that override those of all of them.
        resume: continue each run, or start it.
        overwrite: replace runs that are there.
        evaluate: compare each result with the base at the end.
        as_json: print the results as JSON.

    Returns:
        The exit code: that of the first run that failed, or of the signal that stopped all.
    """
    from offbook.settings.config import local_path

    files = [a for a in arguments if "=" not in a or local_path(a)]
    settings = [a for a in arguments if a not in files]
    if not files:
        raise ConfigError(
            "no configuration is given", where="--many", fix="name two or more, as in a.yaml b.yaml"
        )
    configs = [load_config(Path(file), settings) for file in files]
    from offbook.training.many import named, train_many

    by_name = named(configs)
    bar: Progress = make_bar()
    monitors = {name: ProgressMonitor(name, bar) for name in by_name}
    with ExitStack() as shown:
        for monitor in monitors.values():
            shown.enter_context(monitor)
        received = shown.enter_context(stop_signals(*(m.pace for m in monitors.values())))
        endings = train_many(
            by_name,
            resume=resume,
            overwrite=overwrite,
            monitors=monitors,
            should_stop=lambda: bool(received),
        )
    if as_json:
        print(json.dumps({name: _as_json(ending) for name, ending in endings.items()}))
    else:
        for name, ending in endings.items():
            _report(name, ending, evaluate)
    if all(ending.result and ending.result.finished for ending in endings.values()):
        return 0
    failed = next((ending.error for ending in endings.values() if ending.error), None)
    if not failed or received:
        again = " ".join(map(quoted, [*files, *settings]))
        say(f"continue all of them with\n    offbook train --many {again} --resume")
    if failed:
        return failed.exit_code
    return exit_code(received[0] if received else signal.SIGTERM)


def _report(name: str, ending: Ending, evaluate: bool) -> None:
    """Print how one of the runs ended."""
    result = ending.result
    if ending.error:
        say(f"error: {name}: {ending.error}", "red")
    elif result and result.finished:
        put(name, "bold")
        report(result, evaluate)
    elif result and result.steps:
        say(f"{name}: stopped and saved after step {result.steps}")
    else:
        say(f"{name}: stopped before the first step; nothing to save")


def _as_json(ending: Ending) -> dict[str, object]:
    if ending.result:
        return {**asdict(ending.result), "run": str(ending.result.run)}
    return {"error": str(ending.error) if ending.error else None, "finished": False}
