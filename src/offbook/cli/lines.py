"""`offbook lines`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offbook.cli.console import out, put, say, waiting
from offbook.errors import ConfigError, DataError, DiskError, quoted, suggest

if TYPE_CHECKING:
    from offbook.data.scripts.rows import Cast

MOST_SPEAKERS = 30  # in the table
PREVIEW = 3  # rows
SHOWN = 200  # characters of a message in the preview


def lines(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Scripts, or folders of them.")
    ],
    role: Annotated[str | None, typer.Option(help="The speaker to make rows of.")] = None,
    alias: Annotated[
        str, typer.Option(metavar="A,B", help="Other names of the role, with commas between.")
    ] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.jsonl", help="Where to write the rows.")
    ] = Path("rows.jsonl"),
    context: Annotated[
        int, typer.Option(min=1, help="Most turns before a reply that its row has.")
    ] = 6,
    keep_personal: Annotated[
        bool, typer.Option(help="Keep phones, mails, ids, cards, addresses and secret links.")
    ] = False,
) -> None:
    """Make rows of a role from a script, subtitles, a novel or a chat.

    Reads drama text (NAME: speech), screenplays and Fountain, subtitles (.srt, .vtt, .ass), novels,
    and chats that WhatsApp, Telegram, Discord, Slack or a WeChat tool has exported. Without --role,
    it lists who speaks.

    \b
    offbook lines play.txt
    offbook lines play.txt --role ANNA -o anna.jsonl
    offbook lines season1/ --role 甄嬛 --alias 嬛嬛,莞贵人 -o zhenhuan.jsonl
    """
    from offbook.data.personal import Replacer
    from offbook.data.scripts.reading import Play
    from offbook.data.scripts.rows import Cast, Made

    if role is not None:
        _require_usable(output)
    play = Play(sources)
    for notice in play.notices:
        say(notice)
    with waiting("reading the lines"):
        cast = Cast(line for line, _ in play)
    if role is None:
        _list(cast)
        command = f"offbook lines {' '.join(map(quoted, sources))} --role NAME -o {quoted(output)}"
        put(f"to make rows of one of them: `{command}`")
        return
    names = [role, *filter(None, map(str.strip, alias.split(",")))]
    _require(cast, names)
    made = Made(None if keep_personal else Replacer())
    first = _write(output, made.of(play, names, context))
    for notice in (*play.remarks.lines(), *made.notices()):
        say(notice)
    if not first:
        raise DataError(
            f"no row: nobody says anything before {role} does",
            where=made.unprompted[0],
            fix="check in the script who speaks, and where scenes are cut",
        )
    _preview(first)
    put(f"{made.rows:,} rows are in {output}", "bold")
    train = f"{quoted(f'data.train={output}')} {quoted(f'output_dir=runs/{output.stem}')}"
    put(f"look at them with `offbook check {quoted(output)}`, and train: `offbook train {train}`")


def _require_usable(output: Path) -> None:
    """Refuse a place where rows cannot be written."""
    if output.suffix != ".jsonl":
        raise ConfigError("rows are written as JSONL", where=str(output), fix="name it .jsonl")
    if os.path.lexists(output):
        raise ConfigError("it exists already", where=str(output), fix="name another file with -o")
    if not output.parent.is_dir():
        raise ConfigError("no such folder", where=str(output.parent), fix="make it first")


def _require(cast: Cast, names: list[str]) -> None:
    """Refuse names that nobody has, after a table of those that somebody has."""
    for name in names:
        if cast.find(name) is None:
            _list(cast)
            fix = suggest(name, list(cast.lines)) or "choose one of the names above"
            raise ConfigError(f"nobody is called {name}", where="--role", fix=fix)


def _list(cast: Cast) -> None:
    """Print the speakers, those with most lines first."""
    if not cast.lines:
        raise DataError(
            "no line names its speaker" if cast.unnamed else "nobody says anything",
            fix="write the name before what is said, as in `ANNA: Come in.`",
        )
    put("   lines  speaker (first line)", "bold")
    for name, count in cast.lines.most_common(MOST_SPEAKERS):
        put(f"{count:>8,}  {name} ({cast.first[name]})")
    if len(cast.lines) > MOST_SPEAKERS:
        put(f"          and {len(cast.lines) - MOST_SPEAKERS:,} others with fewer lines")
    if cast.unnamed:
        put(f"{cast.unnamed:>8,}  do not tell their speaker")


def _write(output: Path, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write all rows, or no file; return the first ones."""
    partial = output.with_name(f".{output.name}.partial")
    first: list[dict[str, Any]] = []
    try:
        # A file's name in the source of a row may not be Unicode: then it is an escape in JSON.
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for row in rows:
                file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
                if len(first) < PREVIEW:
                    first.append(row)
        if first:
            partial.rename(output)
    except OSError as error:
        raise DiskError(f"cannot write ({error.strerror})", where=str(output)) from None
    finally:
        partial.unlink(missing_ok=True)
    return first


def _preview(rows: list[dict[str, Any]]) -> None:
    """Print the first rows."""
    for row in rows:
        put(row["source"], "dim")
        for message in row["messages"]:
            text = message["content"]
            shown = f"{text[:SHOWN]}..." if len(text) > SHOWN else text
            name = "role" if message["role"] == "assistant" else "user"
            put(f"  {name}: " + shown.replace("\n", "\n        "))
    out.print()
