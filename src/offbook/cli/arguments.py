"""The arguments that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offbook.errors import ConfigError, quoted

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override those of the file."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="[best|last|STEP]",
        help="Use this checkpoint of the run: the one with the lowest validation loss, the newest, "
        "or that of a step. By default the result.",
    ),
]


YAML = (".yaml", ".yml")


def file_and_settings(
    config: Path | None, settings: list[str] | None
) -> tuple[Path | None, list[str]]:
    """The file and the settings of a command line on which the file may be left out.

    Without a file, the first setting arrives in its place: `offbook train data.train=rows.json`.
    """
    from offbook.settings.config import local_path

    if config is not None and "=" in str(config) and local_path(str(config)) is None:
        return None, [str(config), *(settings or [])]
    return config, list(settings or [])


def refuse_rows(command: str, config: Path | None, settings: list[str]) -> None:
    """Refuse rows in the place of a configuration.

    Raises:
        ConfigError: with the command that takes them.
    """
    from offbook.data.formats import file_type

    if config is not None and file_type(config):
        rows = [str(config), *(text for text in settings if "=" not in text)]
        listed = f"[{', '.join(rows)}]" if len(rows) > 1 else rows[0]
        line = " ".join(("offbook", command, quoted(f"data.train={listed}")))
        fix = f"name them as data: `{line}`"
        raise ConfigError("these are rows, not a configuration", where=str(config), fix=fix)
