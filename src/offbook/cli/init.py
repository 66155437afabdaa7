"""`offbook init`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from offbook.cli.console import put
from offbook.errors import ConfigError, quoted


def init(
    folder: Annotated[Path, typer.Argument(help="Where to put the files.")] = Path("myrole"),
) -> None:
    """Write a commented configuration and sample rows to start from.

    \b
    offbook init myrole
    """
    samples = files("offbook") / "samples"
    config, rows = folder / "config.yaml", folder / "rows.jsonl"
    for path in (config, rows):
        if path.exists():
            raise ConfigError("it exists already", where=str(path), fix="choose another folder")
    text = Template((samples / "config.yaml").read_text(encoding="utf-8"))
    name = folder.resolve().name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(
            text.substitute(rows=rows.as_posix(), output_dir=f"runs/{name}"), encoding="utf-8"
        )
        rows.write_bytes((samples / "lighthouse.jsonl").read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot write ({error.strerror})", where=str(folder)) from None
    for what, why in (
        (str(config), "all settings, explained"),
        (str(rows), "a sample role of 260 rows: replace them with your own"),
        (f"offbook check {quoted(rows)}", "count them, and see which tokens are trained on"),
        (f"offbook train {quoted(config)}", "train (about 3 minutes with the sample)"),
        (f"offbook chat {quoted(f'runs/{name}')}", "talk to it"),
    ):
        put(f"{what}\n    {why}")
