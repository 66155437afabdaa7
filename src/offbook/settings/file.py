"""YAML files and `section.key=value` overrides, read as plain values with their `file:line`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from offbook.errors import ConfigError, shorten

KeyPath = tuple[str, ...]

DATE = "tag:yaml.org,2002:timestamp"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_DIGITS = 100
OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """Reads dates as text, and reports a number that Python cannot represent with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag == DATE:
            return node.value
        try:
            if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
                raise ValueError
            return super().construct_object(node, deep)
        except ValueError:
            what = "a number that cannot be used"
            raise yaml.MarkedYAMLError(None, None, what, node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """Writes text so that it is read back unchanged, character by character."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Only double quotes escape all line ends; in other styles some are read back as spaces.
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def write_yaml(values: dict[str, Any]) -> str:
    """The values as YAML, in their given order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def write_text(text: str) -> str:
    """A text as a value in YAML, in quotes where it needs them."""
    return write_yaml({"": text}).partition(": ")[2].rstrip("\n")


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        what = "nested too deeply for a configuration" if depth > MAX_DEPTH else ""
        if isinstance(token, yaml.AliasToken | yaml.TagToken):
            what = "YAML aliases and tags are not allowed here"  # a few can expand to gigabytes
        if what:
            raise yaml.MarkedYAMLError(None, None, what, token.start_mark)
    loader = _Loader(text)
    node = loader.get_single_node()
    return node, None if node is None else loader.construct_document(node)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Read the mapping in a YAML file.

    Returns:
        The values, and the `file:line` of every key.

    Raises:
        ConfigError: when it cannot be read or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(
            f"cannot read the configuration ({getattr(error, 'strerror', error)})",
            where=str(path),
            fix="`offbook init` writes one to start from",
        ) from None
    try:
        root, values = _parse(text)
    except ReaderError as error:
        where = f"{path}:{text.count(chr(10), 0, error.position) + 1}"
        what = f"an unprintable character, {chr(error.character)!r}"
        raise ConfigError(what, where=where, fix="remove it") from None
    except yaml.MarkedYAMLError as error:
        where = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        what = error.problem or "not readable as YAML"
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
    if not isinstance(node, yaml.MappingNode):
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
    """Set one `section.key=value` in `values`, and its place in `origins`.

    Raises:
        ConfigError: when it does not have this form.
    """
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f'"{shorten(override)}" is not a setting',
            where="command line",
            fix="write section.key=value",
        )
    section = values
    for name in path[:-1]:
        child = section.get(name)
        if child is not None and not isinstance(child, dict):
            return  # not a section: validation reports it
        section[name] = child = dict(child or {})
        section = child
    section[path[-1]] = _value(text)
    origins[path] = f"command line: {shorten(override)}"


def _value(text: str) -> Any:
    """A value as YAML reads it; the plain text if it is not valid YAML, or only a comment."""
    try:
        _, value = _parse(text)
    except yaml.YAMLError:
        return text
    return text if value is None and text.strip().startswith("#") else value


def origin_of(path: KeyPath, origins: dict[KeyPath, str]) -> str | None:
    """Where a key, or the first key below it, was set; if neither was, where its section was."""
    below = [place for key, place in origins.items() if key[: len(path)] == path]
    if below:
        return below[0]
    while path:
        if path in origins:
            return origins[path]
        path = path[:-1]
    return None
