"""The command line: each command reads its arguments, makes one call, and prints the result.

Only this package prints or exits. Commands import what they need when they run, so that `--help`
does not have to load PyTorch.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from offbook import __version__
from offbook.cli import (
    chat,
    check,
    demo,
    eval,
    export,
    init,
    lines,
    plan,
    report,
    runs,
    serve,
    settings,
    streams,
    sweep,
    train,
    watch,
)
from offbook.cli.console import NARROW, say
from offbook.cli.launch import leads
from offbook.errors import INTERRUPTED, ConfigError, DiskError, OffbookError, shorten

# On a narrow terminal, rich's panels would cut the names of options short.
IS_NARROW = shutil.get_terminal_size().columns < NARROW
app = typer.Typer(
    name="offbook",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None if IS_NARROW else "rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    init.init,
    settings.settings,
    lines.lines,
    check.check,
    plan.plan,
    train.train,
    sweep.sweep,
    watch.watch,
    eval.eval,
    report.report,
    chat.chat,
    export.export,
    serve.serve,
    demo.demo,
):
    app.command()(command)
app.add_typer(runs.group(app.rich_markup_mode))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"offbook {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teach a chat model a role from its lines.

    \b
    See it work:
      offbook demo
    Your own role:
      offbook init myrole
      offbook train myrole/config.yaml
      offbook chat runs/myrole
    """
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        _ = urlsplit(endpoint).port
    except ValueError as error:  # with which huggingface_hub cannot even be imported
        raise ConfigError(
            f"{shorten(endpoint)} is not an address ({error})",
            where="HF_ENDPOINT",
            fix="set it to one, such as https://huggingface.co, or unset it",
        ) from None


def main() -> None:
    """Run the command line. An OffbookError ends in its message and its exit code."""
    streams.prepare()
    code: str | int | None = 0
    try:
        try:
            app(prog_name="offbook")
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
    except OffbookError as error:
        if leads():  # of several processes, all raise the same
            say(f"error: {error}", "red")
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = shorten(str(error.filename))
        say(f"error: {name}: a name that no file can have, since it is too long", "red")
        code = ConfigError.exit_code
    except streams.ReaderGoneError:
        code = 0
    if streams.notices_failure() and not code:
        code = DiskError.exit_code
    sys.exit(code)
