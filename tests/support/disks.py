"""Replacements of `storage.disk`: disks that fail, are watched, or lose their power."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offbook.errors import DiskError
from offbook.files.disk import Disk

OPERATIONS = ("write", "append", "make_folder", "sync_folder", "rename", "remove")


class Watched(Disk):
    """Passes every operation that changes the disk through `perform`."""

    def perform(self, name: str, arguments: tuple[Any, ...], do: Callable[[], None]) -> None:
        do()


def _watched(name: str) -> Callable[..., None]:
    original = getattr(Disk, name)

    def operation(self: Watched, *arguments: Any) -> None:
        self.perform(name, arguments, lambda: original(self, *arguments))

    return operation


for _name in OPERATIONS:
    setattr(Watched, _name, _watched(_name))


class Failing(Watched):
    """Does this many operations, then fails, within an operation if that is a write.

    A full disk (ENOSPC) still renames and removes; a broken one (EIO) does nothing.
    """

    def __init__(self, operations: int, error: int) -> None:
        self.left, self.error = operations, error
        self.failed = False

    def perform(self, name: str, arguments: tuple[Any, ...], do: Callable[[], None]) -> None:
        self.left -= 1
        takes_space = name in ("write", "append", "make_folder")
        if self.left >= 0 or (self.error == errno.ENOSPC and not takes_space):
            do()
            return
        self.failed = True
        if name in ("write", "append"):
            file, content = arguments
            with file.open("wb" if name == "write" else "ab") as stream:
                stream.write(content[: len(content) // 2])
        raise OSError(self.error, os.strerror(self.error), str(arguments[0]))


def error_of(work: Callable[[], object]) -> DiskError | None:
    """The DiskError that `work` raises; None when it succeeds."""
    try:
        work()
    except DiskError as error:
        return error
    return None


class Snapshots(Watched):
    """Copies a folder as a process that is killed would leave it.

    Before each operation, and in the middle of writes and of removing a folder.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.taken: list[Path] = []

    def take(self) -> Path:
        copy = self.copies / f"{len(self.taken):03}"
        shutil.copytree(self.folder, copy)
        self.taken.append(copy)
        return copy

    def perform(self, name: str, arguments: tuple[Any, ...], do: Callable[[], None]) -> None:
        if not self.folder.exists():
            do()
            return
        self.take()
        if name in ("write", "append"):
            file = self.take() / arguments[0].relative_to(self.folder)
            with file.open("wb" if name == "write" else "ab") as stream:
                stream.write(arguments[1][: len(arguments[1]) // 2])
        elif name == "remove" and arguments[0].is_dir():
            for part in sorted((self.take() / arguments[0].relative_to(self.folder)).iterdir())[1:]:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        do()


# A disk that loses its power. A change that was not synced may or may not be there afterwards.


@dataclass
class File:
    content: bytes


@dataclass
class Change:
    """Of the names in a folder: one is removed and one added, at the same time."""

    gone: str | None = None
    come: tuple[str, File | Folder] | None = None

    def apply(self, names: dict[str, File | Folder]) -> None:
        names.pop(self.gone or "", None)
        if self.come:
            names[self.come[0]] = self.come[1]


@dataclass
class Folder:
    """The names that are certainly on the disk, and the changes that may not be."""

    sure: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def names(self) -> dict[str, File | Folder]:
        """The names that the running system sees."""
        names = dict(self.sure)
        for change in self.changes:
            change.apply(names)
        return names

    def at(self, *parts: str) -> File | Folder:
        node: File | Folder = self
        for part in parts:
            assert isinstance(node, Folder)
            node = node.names()[part]
        return node

    def unsure(self) -> list[Change]:
        inside = [node for node in self.names().values() if isinstance(node, Folder)]
        return self.changes + [change for node in inside for change in node.unsure()]

    def write(self, target: Path, happened: list[Change]) -> None:
        """Write the folder as it is when only these of the unsure changes happened."""
        names = dict(self.sure)
        for change in self.changes:
            if any(change is one for one in happened):
                change.apply(names)
        target.mkdir()
        for name, node in names.items():
            if isinstance(node, Folder):
                node.write(target / name, happened)
            else:
                (target / name).write_bytes(node.content)


@dataclass
class Power(Watched):
    """Records what was done to a folder, and constructs what a power cut can leave of it.

    Stricter than real file systems: each change of a folder that was not synced is there or not,
    independently of the others.
    """

    root: Path
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def perform(self, name: str, arguments: tuple[Any, ...], do: Callable[[], None]) -> None:
        do()
        self.log.append(
            (name, *(a.relative_to(self.root) if isinstance(a, Path) else a for a in arguments))
        )

    def cut(self, operations: int, target: Path) -> Iterator[Path]:
        """Yield each folder that a cut during the next operation can leave."""
        following = self.log[operations] if operations < len(self.log) else ("nothing",)
        torn = following[0] in ("write", "append")
        for share in (0.0, 0.5, 1.0) if torn else (1.0,):
            root = Folder()
            for name, *arguments in self.log[:operations]:
                _replay(root, name, *arguments)
            if torn:
                name, file, content = following
                _replay(root, name, file, content[: int(len(content) * share)])
            elif following[0] != "sync_folder":
                _replay(root, *following)
            unsure = root.unsure()
            choices = [
                [],
                unsure,
                *([change] for change in unsure),
                *([c for c in unsure if c is not change] for change in unsure),
            ]
            for happened in choices:
                root.write(target, happened)
                yield target
                shutil.rmtree(target)


def _replay(root: Folder, name: str, path: Path = Path(), *more: Any) -> None:
    if name == "nothing":
        return
    folder = root.at(*path.parent.parts)
    assert isinstance(folder, Folder)
    node = folder.names().get(path.name)
    if name == "write":
        if isinstance(node, File):
            node.content = more[0]
        else:
            folder.changes.append(Change(come=(path.name, File(more[0]))))
    elif name == "append":
        if isinstance(node, File):
            node.content += more[0]
        else:
            folder.changes.append(Change(come=(path.name, File(more[0]))))
    elif name == "make_folder":
        folder.changes.append(Change(come=(path.name, Folder())))
    elif name == "rename":
        assert node is not None
        folder.changes.append(Change(gone=path.name, come=(more[0].name, node)))
    elif name == "remove":
        if isinstance(node, Folder):
            node.changes += [Change(gone=inside) for inside in node.names()]
        folder.changes.append(Change(gone=path.name))
    elif name == "sync_folder":
        synced = root.at(*path.parts)
        assert isinstance(synced, Folder)
        synced.sure, synced.changes = synced.names(), []
