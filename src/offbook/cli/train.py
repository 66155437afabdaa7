"""`offbook train`."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from offbook.cli.arguments import YAML, Settings, file_and_settings, refuse_rows
from offbook.cli.console import ProgressMonitor, put, say
from offbook.cli.launch import launch, leads, nproc_option, without_nproc
from offbook.cli.scorecard import put_short_scorecard
from offbook.errors import INTERRUPTED, TERMINATED, ConfigError, quoted, shorten
from offbook.monitor import LineMonitor
from offbook.signals import STOPPING, handling

if TYPE_CHECKING:
    from offbook.monitor import Pace
    from offbook.settings.config import Config
    from offbook.training.train import TrainResult

HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none
UNITS = (3600, 60, 1)
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?) ?h)? ?(?:(\d+(?:\.\d+)?) ?m)? ?(?:(\d+(?:\.\d+)?) ?s)?")
SHOW_CURSOR = "\x1b[?25h"  # the progress bar hides it


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file, or the directory of a run.")
    ] = None,
    settings: Settings = None,
    many: Annotated[
        bool, typer.Option("--many", help="Train several files' runs together, on one base.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the newest checkpoint, or start."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run, but no other files.")
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--eval/--no-eval", help="At the end, compare the result with the base, in short."
        ),
    ] = True,
    within: Annotated[
        str | None,
        typer.Option(help="Take as many steps as fit in this time, such as 2h or 90m."),
    ] = None,
    nproc: Annotated[
        int,
        typer.Option(min=1, help="Train with so many processes here, such as one for each GPU."),
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Train an adapter, or resume a run.

    \b
    offbook train recipes/smollm2-demo.yaml
    offbook train myrole/config.yaml train.learning_rate=2e-4 lora.r=16
    offbook train data.train=rows.json output_dir=runs/rows
    offbook train myrole/config.yaml --within 2h
    offbook train runs/myrole --resume
    offbook train runs/myrole --resume train.num_train_epochs=5
    offbook train myrole/config.yaml --nproc 2
    offbook train --many recipes/*.yaml
    """
    if many:
        if within or nproc > 1:
            raise ConfigError(
                "they are for one run",
                where="--many with --within or --nproc",
                fix="leave them out, or train the runs one after another",
            )
        from offbook.cli.many import train_many_files

        arguments = [*([str(config)] if config else []), *(settings or [])]
        raise typer.Exit(
            train_many_files(
                arguments, resume=resume, overwrite=overwrite, evaluate=evaluate, as_json=as_json
            )
        )
    loaded = load_config(*file_and_settings(config, settings))
    seconds = parse_duration(within) if within else None
    if nproc > 1 and os.environ.get("WORLD_SIZE", "1") == "1":
        raise typer.Exit(launch(nproc, without_nproc(sys.argv[1:])))
    result, code = run_training(loaded, resume, overwrite, seconds)
    if not leads():
        raise typer.Exit(code)
    if as_json:
        print(json.dumps({**asdict(result), "run": str(result.run)}))
    else:
        report(result, evaluate)
    raise typer.Exit(code)


def load_config(config: Path | None, settings: list[str]) -> Config:
    """The settings of a run that is to be trained.

    Args:
        config: a YAML file, or the directory of a run.
        settings: override those of the file.

    Raises:
        ConfigError: when it is neither, or names no rows.
    """
    from offbook.settings.config import Config

    refuse_rows("train", config, settings)
    if several := [text for text in settings if "=" not in text and text.endswith(YAML)]:
        files = [str(config), *several]
        fix = f"train several roles: `offbook train --many {' '.join(map(quoted, files))}`"
        raise ConfigError("it is another configuration", where=several[0], fix=fix)
    if config is not None and (config / "config.yaml").is_file():
        config = config / "config.yaml"
    elif config and (config.is_dir() or not (config.exists() or config.suffix in YAML)):
        raise ConfigError(
            "not a run directory",
            where=str(config),
            fix="`offbook runs` lists them; `offbook init` makes a folder to start from",
        )
    loaded = Config.load(config, settings)
    if not loaded.gives("data.train"):
        raise ConfigError(
            "there are no rows to train on",
            where=str(config) if config else None,
            fix="add data.train=FILE; or run `offbook demo` for a sample role, or, for a folder to "
            "start from, `offbook init myrole`",
        )
    return loaded


def parse_duration(text: str) -> float:
    """Seconds, from text such as `2h`, `90m` or `1h30m`.

    Raises:
        ConfigError: when it is no duration.
    """
    match = DURATION.fullmatch(text.strip().lower())
    seconds = sum(float(match[k + 1] or 0) * unit for k, unit in enumerate(UNITS)) if match else 0
    if seconds <= 0:
        raise ConfigError(
            f"not a duration: {shorten(text)}", where="--within", fix="as in 2h or 90m"
        )
    return seconds


def run_training(
    config: Config, resume: bool, overwrite: bool, within: float | None = None
) -> tuple[TrainResult, int]:
    """Train with progress on stderr. Ctrl-C, SIGTERM and a closed terminal save the run and end it.

    Returns:
        The result, and the exit code.
    """
    with progress() as monitor, stop_signals(monitor.pace) as received:
        monitor.busy("starting")
        from offbook.training.train import train

        result = train(
            config,
            resume=resume,
            overwrite=overwrite,
            within=within,
            monitor=monitor,
            should_stop=lambda: bool(received),
        )
    if result.finished:
        return result, 0
    # Of several processes, one may be stopped by a signal that another has received.
    return result, exit_code(received[0] if received else signal.SIGTERM)


def progress() -> LineMonitor:
    """What shows the progress of a training, in the process that prints."""
    return ProgressMonitor() if leads() else LineMonitor(lambda line: None)


def report(result: TrainResult, evaluate: bool = True) -> None:
    """Print how a run ended, whether the role took, and what to do next."""
    run = quoted(result.run)
    if not result.finished:
        how = f"stopped and saved after step {result.steps}; continue with"
        if result.steps == 0:
            how = "stopped before the first step; nothing to save. Start again with"
        say(f"{how}\n    offbook train {run} --resume" + nproc_option())
        return
    if result.seconds:
        put(
            f"{result.steps} steps; {result.seconds:.0f} s of training, "
            f"{result.examples_per_second:.1f} examples/s"
        )
    if result.eval_loss is not None and result.eval_loss_before is not None:
        change = result.eval_loss / result.eval_loss_before - 1
        put(
            f"validation loss {result.eval_loss_before:.3f} before, "
            f"{result.eval_loss:.3f} after ({change:+.0%})"
        )
    if result.best_step not in (None, result.steps):
        put(
            f"the validation loss was lowest after step {result.best_step:,}; talk to that "
            f"checkpoint:\n    offbook chat {run} --checkpoint best"
        )
    if evaluate and result.seconds:
        put_short_scorecard(result.run)
    put(f"adapter in {result.run / 'adapter'}")
    put(f"talk to it:\n    offbook chat {run}")


@contextmanager
def stop_signals(*paces: Pace) -> Iterator[list[int]]:
    """A list of the stop signals received so far. The second SIGINT or SIGTERM exits at once.

    A second SIGHUP does not, since a closing terminal may send several. `paces` are those of the
    runs that are trained.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == HANG_UP:
            _discard_output()
        elif received:
            if leads() and os.isatty(2):
                _write_stderr(SHOW_CURSOR)
            os._exit(exit_code(number))
        received.append(number)  # before the message, since the next signal may follow at once
        if len(received) == 1 and leads():
            again = "press Ctrl-C again to exit at once"
            if any(pace.done for pace in paces):
                _write_stderr(f"saving and stopping; {again}, without saving\n")
            else:
                _write_stderr(f"stopping; {again}\n")

    with handling(note, STOPPING):
        yield received


def exit_code(number: int) -> int:
    return INTERRUPTED if number == signal.SIGINT else TERMINATED


def _write_stderr(text: str) -> None:
    """Write without rich, which the signal may have interrupted in the middle of its work."""
    with suppress(OSError):
        os.write(2, text.encode())


def _discard_output() -> None:
    """Discard further output: writing to a closed terminal would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
