"""What the sources say to a user, found in their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.shared import ROOT

SOURCES = sorted((ROOT / "src" / "offbook").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def texts() -> Iterator[tuple[Path, str]]:
    """Every string of every source file; the values in an f-string as `{expression}`."""
    for path, tree in TREES.items():
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

    For a `fix` that is computed: every text that is assigned to it or given for it, that the
    called function returns, or that is in the dictionary where it is looked up; or its source.
    """
    for path, tree in TREES.items():
        name = path.relative_to(ROOT / "src" / "offbook").as_posix()
        for scope in ast.walk(tree):
            if isinstance(scope, (ast.FunctionDef, ast.Module)):
                for node in _own_nodes(scope):
                    if isinstance(node, ast.Call):
                        for keyword in node.keywords:
                            if keyword.arg == "fix":
                                for text in _Place(tree, scope).readings(keyword.value):
                                    yield name, text


@cache
def _own_nodes(scope: ast.AST) -> tuple[ast.AST, ...]:
    """The nodes of a function, without those of functions in it."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            found += [child, *_own_nodes(child)]
    return tuple(found)


@dataclass(frozen=True)
class _Place:
    """A function, or the top level, of a file: where names have a meaning."""

    tree: ast.Module
    scope: ast.AST

    def readings(self, node: ast.expr) -> Iterator[str]:
        """Every text that an expression can be."""
        if isinstance(node, ast.IfExp):
            inner = [node.body, node.orelse]
        elif isinstance(node, ast.BoolOp):
            inner = node.values
        elif isinstance(node, ast.List):
            inner = node.elts
        elif isinstance(node, ast.Name):
            inner = [*self._assigned(node.id), *self._given(node.id)]
        elif isinstance(node, ast.Call) and (results := list(self._results(node))):
            for place, value in results:
                yield from place.readings(value)
            return
        elif isinstance(node, (ast.Compare, ast.Constant)) and as_text(node) is None:
            return
        else:
            text = as_text(node)
            yield ast.unparse(node) if text is None else text
            return
        for value in inner:
            yield from self.readings(value)

    def _assigned(self, name: str) -> Iterator[ast.expr]:
        """What a name is assigned here, and what is appended to it; or the constant it is."""
        scope = self._origin(name).scope if name.isupper() else self.scope
        for node in _own_nodes(scope):
            if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    yield node.value
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == f"{name}.append":
                yield node.args[0]

    def _given(self, name: str) -> Iterator[ast.expr]:
        """What is given, by position, for a parameter of this function in its file."""
        if not isinstance(self.scope, ast.FunctionDef):
            return
        names = [argument.arg for argument in self.scope.args.args if argument.arg != "self"]
        for node in ast.walk(self.tree) if name in names else ():
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).removeprefix("self.")
                if called == self.scope.name and len(node.args) > names.index(name):
                    yield node.args[names.index(name)]

    def _results(self, call: ast.Call) -> Iterator[tuple[_Place, ast.expr]]:
        """What a call of our own function, `"; ".join(...)` or `CONSTANT.get(...)` can give."""
        if isinstance(call.func, ast.Name):
            origin = self._origin(call.func.id)
            for function in origin.tree.body:
                if isinstance(function, ast.FunctionDef) and function.name == call.func.id:
                    for node in _own_nodes(function):
                        if isinstance(node, ast.Return) and node.value:
                            yield _Place(origin.tree, function), node.value
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "join":
            for value in self._assigned(ast.unparse(call.args[0])):
                yield self, value
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "get":
            name = ast.unparse(call.func.value)
            for value in (*self._assigned(name), *call.args[1:]):
                for entry in value.values if isinstance(value, ast.Dict) else [value]:
                    yield self._origin(name), entry

    def _origin(self, name: str) -> _Place:
        """The top level of the file that a name of the top level is from."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                path = ROOT / "src" / f"{str(node.module).replace('.', '/')}.py"
                if path in TREES:
                    return _Place(TREES[path], TREES[path])
        return _Place(self.tree, self.tree)
