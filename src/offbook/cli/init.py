"""`offbook init`."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from offbook.cli.console import put
from offbook.errors import ConfigError, quoted
from offbook.settings.file import write_text


def init(
    folder: Annotated[Path, typer.Argument(help="Where to put the files.")] = Path("myrole"),
) -> None:
    """Write a commented configuration and sample rows to start from.

    \b
    offbook init myrole
    """
    from offbook.settings.config import RECEIPT

    samples = files("offbook") / "samples"
    config, rows = folder / "config.yaml", folder / "rows.jsonl"
    for path in (config, rows, folder / RECEIPT):  # a run is no folder to start from
        if os.path.lexists(path):
            raise ConfigError("it exists already", where=str(path), fix="choose another folder")
    template = Template((samples / "config.yaml").read_text(encoding="utf-8"))
    run = Path("runs", folder.resolve().name)
    names = {"rows": rows.as_posix(), "output_dir": run.as_posix()}
    text = template.substitute({key: write_text(name) for key, name in names.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with config.open("x", encoding="utf-8") as file:
            file.write(text)
        with rows.open("xb") as file:
            file.write((samples / "lighthouse.jsonl").read_bytes())
    except OSError as error:
        what = "it is a file" if folder.is_file() else f"cannot write ({error.strerror})"
        raise ConfigError(what, where=str(folder), fix="choose another folder") from None
    for what, why in (
        (str(config), "all settings, explained"),
        (str(rows), "a sample role of 260 rows: replace them with your own"),
        (f"offbook check {quoted(rows)}", "count them, and see which tokens are trained on"),
        (f"offbook train {quoted(config)}", "train (about 5 minutes with the sample)"),
        (f"offbook chat {quoted(run)}", "talk to it"),
    ):
        put(f"{what}\n    {why}")
