"""The report of a run: one HTML file that needs no other and makes no request.

Texts of models and rows are always text: jinja2 escapes them, control characters are made visible,
and a Content-Security-Policy allows only the style and the script whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from offbook import __version__
from offbook.errors import ConfigError, printable
from offbook.files import storage
from offbook.report.contents import Contents
from offbook.report.facts import counts, facts, shown, tables
from offbook.report.findings import said
from offbook.report.words import GOOD, KINDS, MEANINGS, OPEN, WORDS, Text, same
from offbook.runs.derived import REPORT, is_marked
from offbook.runs.directory import RunDirectory

SHOWN_REPLIES = 8  # the others are folded
# The sections of a report in their order, and the template that each is in.
SECTIONS = {
    **dict.fromkeys(("status", "verdict", "curves"), "training.html"),
    **dict.fromkeys(("scorecard", "replies", "strength"), "scores.html"),
    **dict.fromkeys(("ledger", "doctor", "tokens", "receipt"), "rows.html"),
}


def write_report(run: RunDirectory, file: Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        run: it is read, and may be unfinished.
        file: where to write; by default `report.html` in the run.

    Returns:
        The file.

    Raises:
        ConfigError: when there is a file of that name that offbook did not write.
        CheckpointError: when a file of the run is damaged.
        DiskError: when the disk is full or fails.
    """
    return write_page(file or run.path / REPORT, render(Contents.read(run)))


def write_page(file: Path, html: str) -> Path:
    """Write a page, but not over a file of the user's."""
    if file.exists() and not is_marked(file, REPORT):
        raise ConfigError(
            "is here, and is not a page that offbook wrote",
            where=str(file),
            fix="name another file with -o",
        )
    storage.make_folder(file.parent)
    storage.replace_file(file, html.encode())
    return file


def render(contents: Contents) -> str:
    """The report as HTML."""
    return whole_page(contents.name, parts(contents), list(SECTIONS), contents.language)


def parts(contents: Contents) -> dict[str, Markup]:
    """The parts of a report, by the id of the element that each is in; empty where left out."""
    view = View(contents)
    made = dict[str, Markup]()
    for file in dict.fromkeys(SECTIONS.values()):
        made |= render_parts(file, [key for key in SECTIONS if SECTIONS[key] == file], view)
    view.entries = [(key, WORDS[NAMES[key]]) for key in SECTIONS if made[key] and key != "status"]
    return render_parts("training.html", ("heading", "contents"), view) | made


def render_parts(file: str, names: Iterable[str], contents: object) -> dict[str, Markup]:
    """What the macros of a template make of contents, by their names."""
    module = _environment().get_template(file).make_module({"shown": SHOWN_REPLIES})
    return {name: Markup(str(getattr(module, name)(contents)).strip()) for name in names}  # noqa: S704


# The name of each section in the list of contents.
NAMES = {key: key for key in SECTIONS} | {"tokens": "token_view"}


class View:
    """The contents of a report, with what only the templates need."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self.entries: list[tuple[str, Text]] = []
        rows = contents.rows
        self.counts = counts(rows) if rows else []
        self.notices = rows.notices if rows else []
        self.findings = [said(finding) for finding in rows.findings] if rows else []
        self.spans = shown(rows.spans) if rows else []
        self.facts = facts(contents)
        self.tables = tables(contents)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._contents, name)


def whole_page(
    title: str,
    parts: dict[str, Markup],
    sections: list[str],
    language: str = "en",
    live: str | None = None,
) -> str:
    """A page around its parts.

    Args:
        title: of the page.
        parts: `heading`, `contents` and the sections.
        sections: the ids of the sections, in their order.
        language: that it is shown in to a reader whose own is neither.
        live: the state that it shows, where it follows a run.
    """
    style, script = _text("page.css"), _text("page.js")
    return str(
        _environment()
        .get_template("page.html")
        .render(
            title=f"{title} · offbook",
            parts=parts,
            sections=sections,
            language=language,
            live=live,
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=policy(live is not None),
            generator=f"offbook report {__version__}",
            version=__version__,
        )
    )


@cache
def policy(live: bool) -> str:
    """The Content-Security-Policy: only our style and script; no request, but for a live page's."""
    rules = [
        "default-src 'none'",
        f"style-src 'sha256-{_hash('page.css')}'",
        f"script-src 'sha256-{_hash('page.js')}'",
        "img-src data:",  # the icon
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types offbook" if live else "trusted-types 'none'",
    ]
    return "; ".join([*rules, "connect-src 'self'"] if live else rules)


def _hash(name: str) -> str:
    return base64.b64encode(hashlib.sha256(_text(name).encode()).digest()).decode()


@cache
def _text(name: str) -> str:
    return (files("offbook.report") / "page" / name).read_text(encoding="utf-8").strip()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("offbook.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.globals.update(
        w=WORDS,
        tone=lambda kind: "good" if kind in GOOD else "open" if kind in OPEN else "bad",
        kind=lambda kind: KINDS.get(kind, same(kind)),
        meaning=lambda kind: MEANINGS.get(kind),
        place=lambda source: Path(source).name,  # `file:line`, without the folder
    )
    return environment


def _visible(value: object) -> object:
    """A value as a template writes it: control characters are made visible."""
    return value if hasattr(value, "__html__") else printable(str(value))
