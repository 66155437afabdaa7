"""YAML files and `section.key=value` overrides as plain values that remember where they stood."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from offbook.errors import ConfigError

KeyPath = tuple[str, ...]


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The mapping in a YAML file, and for every key in it the `file:line` it stands on."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration ({error.strerror})",
            where=str(path),
            fix="`offbook init` writes one to start from",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or "not readable as YAML"
        raise ConfigError(what, where=where, fix="check indentation, colons and quotes") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(
            "the configuration is not a mapping",
            where=str(path),
            fix="write `section: {key: value}`",
        )
    return values, dict(_lines(root, path))


def _lines(
    node: yaml.Node | None, path: Path, prefix: KeyPath = ()
) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(node, yaml.MappingNode) or len(prefix) > 8:
        return
    seen: set[str] = set()
    for key, value in node.value:
        name, where = str(key.value), f"{path}:{key.start_mark.line + 1}"
        if name in seen:
            raise ConfigError(f'"{name}" is set twice', where=where, fix="remove one of them")
        seen.add(name)
        yield (*prefix, name), where
        yield from _lines(value, path, (*prefix, name))


def apply_override(override: str, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f'"{override}" is not a setting', where="command line", fix="write section.key=value"
        )
    section = values
    for name in path[:-1]:
        child = section.get(name)
        if child is not None and not isinstance(child, dict):
            return  # not a section: validation will say so
        section[name] = child = dict(child or {})
        section = child
    section[path[-1]] = _value(text)
    origins[path] = f"command line: {override}"


def _value(text: str) -> Any:
    """A value as YAML reads it; as text where it is no YAML, or would vanish as a comment."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return text if value is None and text.strip().startswith("#") else value


def origin_of(path: KeyPath, origins: dict[KeyPath, str]) -> str | None:
    """Where a key, or the first key below it, was set; for one that was not, its section."""
    below = [place for key, place in origins.items() if key[: len(path)] == path]
    if below:
        return below[0]
    while path:
        if path in origins:
            return origins[path]
        path = path[:-1]
    return None
