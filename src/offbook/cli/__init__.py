"""The command line: each command reads its arguments, makes one call, and prints the result.

Only this package prints or exits. Commands import what they need when they run, so that `--help`
does not have to load PyTorch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from offbook import __version__
from offbook.cli import chat, check, demo, export, init, plan, settings, train
from offbook.cli.console import say
from offbook.errors import INTERRUPTED, OffbookError

app = typer.Typer(
    name="offbook",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    init.init,
    settings.settings,
    check.check,
    plan.plan,
    train.train,
    chat.chat,
    export.export,
    demo.demo,
):
    app.command()(command)


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
    [bold]See it work[/]      offbook demo
    [bold]Your own role[/]    offbook init myrole
                     offbook train myrole/config.yaml
                     offbook chat runs/myrole
    """


def main() -> None:
    """Run the command line. An OffbookError ends in its message and its exit code."""
    try:
        app(prog_name="offbook")
    except OffbookError as error:
        say(f"error: {error}", "red")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # our output is no longer read, as in `offbook check ... | head`
        sys.exit(0)
