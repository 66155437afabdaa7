"""`offbook settings`, and the text of `docs/settings.md`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from offbook.cli.console import NARROW, out, put
from offbook.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

KINDS = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
PREAMBLE = """\
# Settings

Every setting of a run: its type, its default, what it means, and the paper it comes from. A YAML
file sets them by section (`offbook init` writes one that shows them all), and `offbook train FILE
section.key=value` overrides any of them. `offbook settings [KEY]` prints the same in a terminal.

This page is generated from the docstrings of `src/offbook/settings/sections.py` by
`python docs/settings.py`.
"""


class Setting(NamedTuple):
    """What is shown of a setting, as text."""

    key: str
    kind: str
    default: str
    meaning: str


class Group(NamedTuple):
    """A section and its settings; `output_dir` is a group of its own."""

    name: str
    meaning: str
    settings: list[Setting]


def settings(
    key: Annotated[
        str | None, typer.Argument(help="A setting or a section; by default, all in short.")
    ] = None,
) -> None:
    """Explain the settings of a run.

    \b
    offbook settings
    offbook settings train
    offbook settings train.batch_size
    """
    groups = describe()
    if key is None:
        _print_summary(groups)
        return
    chosen = [s for group in groups for s in group.settings if key in (s.key, group.name)]
    if not chosen:
        from offbook.settings.config import keys
        from offbook.settings.names import suggest_key

        fix = suggest_key(tuple(key.split(".")), list(keys()))
        raise ConfigError(f'unknown setting "{key}"', fix=fix)
    for setting in chosen:
        out.print(setting.key, style="bold", markup=False)
        out.print(f"  {setting.kind}; default {setting.default}", markup=False, soft_wrap=True)
        out.print(f"  {setting.meaning}\n", markup=False, soft_wrap=not out.is_terminal)


def describe() -> list[Group]:
    """All settings by section, in the order of `Config`."""
    from offbook.settings.config import Config
    from offbook.settings.sections import Section

    groups = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            members = [_setting(f"{name}.{k}", f) for k, f in section.model_fields.items()]
            groups.append(Group(name, _line(section.__doc__), members))
        else:
            groups.append(Group(name, "Where the run is written.", [_setting(name, field)]))
    return groups


def markdown() -> str:
    """The text of `docs/settings.md`."""
    lines = [PREAMBLE]
    for group in describe():
        lines.append(f"## `{group.name}`\n\n{_with_links(group.meaning)}\n")
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for s in group.settings:
            cells = f"`{s.key}`", s.kind, f"`{s.default}`", _with_links(s.meaning)
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _print_summary(groups: Sequence[Group]) -> None:
    for group in groups:
        put(f"{group.name}: {_first_sentence(group.meaning)}", "bold")
        if out.width < NARROW:
            for s in group.settings:
                put(f"  {s.key}  {s.default}")
                out.print(Padding(Text(_first_sentence(s.meaning)), (0, 0, 0, 4)))
            continue
        table = Table.grid(padding=(0, 2))
        for s in group.settings:
            table.add_row(*map(Text, (f"  {s.key}", s.default, _first_sentence(s.meaning))))
        out.print(table)


def _setting(key: str, field: FieldInfo) -> Setting:
    kind = ", ".join([_kind(field.annotation), *_limits(field)])
    return Setting(key, kind, _default(field.default), _line(field.description))


def _limits(field: FieldInfo) -> list[str]:
    return [
        f"{words} {getattr(item, name)}"
        for item in field.metadata
        for name, words in LIMITS.items()
        if getattr(item, name, None) is not None
    ]


def _kind(annotation: Any) -> str:
    """A type in words: `int | None` is `integer or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([_kind(arguments[0]), *_limits(arguments[1])])
    if origin is Literal:
        *others, last = [f"`{value}`" for value in arguments]
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, arguments))
    if origin is tuple:
        more = "" if arguments[0] is str else f" and {_kind(arguments[0])}"
        return f"list of texts{more}"
    if origin is dict:
        return "texts by key"
    if annotation in KINDS:
        return KINDS[annotation]
    return f"`{{{', '.join(annotation.model_fields)}}}`"


def _default(value: object) -> str:
    from offbook.settings.file import write_yaml

    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    if value == {}:
        return "{}"
    return write_yaml({"key": value}).removeprefix("key: ").strip()


def _line(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) (?=[A-Z`0-9])", text)[0]


def _with_links(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5}|\d{4}\.\d{4})", r"[\g<0>](https://arxiv.org/abs/\1)", text)
