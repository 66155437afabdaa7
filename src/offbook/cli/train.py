"""`offbook train`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from offbook.cli.console import ProgressMonitor, out, say
from offbook.errors import INTERRUPTED, TERMINATED, ConfigError

if TYPE_CHECKING:
    from offbook.config import Config
    from offbook.training import TrainResult

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the file's."),
]


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file, or a run directory to resume.")
    ] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is there.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Train an adapter.

    \b
    offbook train recipes/smollm2-demo.yaml
    offbook train myrole/config.yaml train.learning_rate=2e-4 lora.r=16
    offbook train data.train=rows.json output_dir=runs/rows
    offbook train runs/myrole --resume
    """
    from offbook.config import Config
    from offbook.rows import SUFFIXES

    settings = list(settings or [])
    if config is not None and "=" in str(config) and not config.exists():
        settings.insert(0, str(config))  # no file given, only settings
        config = None
    if config is not None and config.suffix.lower() in SUFFIXES:
        fix = f"offbook train data.train={config}"
        raise ConfigError("these are rows, not a configuration", where=str(config), fix=fix)
    if config is not None and config.is_dir():
        config = config / "config.yaml"
    result, code = run_training(Config.load(config, settings), resume, overwrite)
    if as_json:
        print(json.dumps({**asdict(result), "run": str(result.run)}))
    else:
        report(result, str(config) if config else "")
    raise typer.Exit(code)


def run_training(config: Config, resume: bool, overwrite: bool) -> tuple[TrainResult, int]:
    """Train with progress on stderr; Ctrl-C or SIGTERM saves and ends early.

    Returns:
        The result, and the exit code that tells how it ended.
    """
    from offbook.training import train

    with ProgressMonitor() as monitor, _signals() as received:
        result = train(
            config,
            resume=resume,
            overwrite=overwrite,
            monitor=monitor,
            should_stop=lambda: bool(received),
        )
    if result.finished:
        return result, 0
    return result, TERMINATED if signal.SIGTERM in received else INTERRUPTED


def report(result: TrainResult, config: str) -> None:
    """Print how a run ended and what to do next."""
    if not result.finished:
        again = f"offbook train {config or result.run} --resume"
        say(f"stopped and saved after step {result.steps}; go on with `{again}`")
        return
    out.print(
        f"{result.steps} steps; {result.seconds:.0f} s of training, "
        f"{result.examples_per_second:.1f} examples/s"
    )
    if result.eval_loss is not None and result.eval_loss_before is not None:
        change = result.eval_loss / result.eval_loss_before - 1
        out.print(
            f"validation loss {result.eval_loss_before:.3f} before, "
            f"{result.eval_loss:.3f} after ({change:+.0%})"
        )
    out.print(f"adapter in {result.run / 'adapter'}", soft_wrap=True, markup=False)
    out.print(f"talk to it: offbook chat {result.run}", soft_wrap=True, markup=False)


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """The signals that asked to stop. A second one stops at once."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        say("saving and stopping; once more to leave at once")

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
