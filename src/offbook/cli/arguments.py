"""The arguments that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
