"""What the sources say to a user, found in their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from support.shared import ROOT

SOURCES = sorted((ROOT / "src" / "offbook").rglob("*.py"))


def texts() -> Iterator[tuple[Path, str]]:
    """Every string of every source file; the values in an f-string as `{expression}`."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) not in inner and (text := as_text(node)) is not None:
                yield path, text


def as_text(node: ast.AST) -> str | None:
    """The text of a string or f-string; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
            for part in node.values
        )
    return None


def advice() -> Iterator[tuple[str, str]]:
    """The file, and the text, of each `fix` that an error is raised with.

    For a `fix` that is computed, every text that is assigned to it; or its source.
    """
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT / "src" / "offbook").as_posix()
        for scope in ast.walk(tree):
            if isinstance(scope, (ast.FunctionDef, ast.Module)):
                for node in _own_nodes(scope):
                    if isinstance(node, ast.Call):
                        for keyword in node.keywords:
                            if keyword.arg == "fix":
                                for text in _readings(keyword.value, scope):
                                    yield name, text


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, without those of functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own_nodes(child)


def _readings(node: ast.expr, scope: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from _readings(node.body, scope)
        yield from _readings(node.orelse, scope)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _readings(value, scope)
    elif isinstance(node, ast.Name):
        assigned = [
            other.value
            for other in _own_nodes(scope)
            if isinstance(other, (ast.Assign, ast.AugAssign, ast.AnnAssign))
            and other.value is not None
            for target in (other.targets if isinstance(other, ast.Assign) else [other.target])
            if isinstance(target, ast.Name) and target.id == node.id
        ]
        for value in assigned:
            yield from _readings(value, scope)
        return  # a parameter or attribute, which got its text elsewhere, if nothing is assigned
    elif isinstance(node, (ast.Compare, ast.Constant)) and as_text(node) is None:
        return
    else:
        text = as_text(node)
        yield ast.unparse(node) if text is None else text
