"""Writes the files of a run directory: each file or folder appears whole or not at all.

A reader must never see half a file. But a process can be killed between any two system
calls, and a power cut also loses what the system had not yet sent to the disk. So nothing is
written under the name that readers look for:

1. write the content under another name, `.NAME.partial`, and fsync it; if it is a folder, fsync
   every file in it, the last one being `manifest.json` with the size and SHA-256 of the others, and
   then the folder itself;
2. rename it to NAME;
3. fsync the parent folder.

The rename is the commit: before it, NAME is absent or old; after it, NAME is new and complete. A
folder is removed in reverse: it is renamed to `.NAME.partial` and then deleted. So whatever a crash
leaves unfinished is called `.NAME.partial`, and `clean` removes it at the next start. A rename
cannot replace a folder; so a caller that always needs a complete one commits `step-200` before it
discards `step-100`.

A committed folder may also hold what its owner put there. Only the files that its manifest names
are ever removed: with others beside them, they are removed one by one, the manifest last, and a
folder that is committed again takes the others over.

Assumed of the file system: a rename within a folder is atomic, and what fsync has confirmed is
still there after a power cut. Not assumed: that changes reach the disk in the order in which they
were made, that close writes to the disk, or that an append is atomic.

The proof is in the tests. Every change goes through the operations of `Disk`, and
`tests/support/disks.py` replaces them. One replacement copies the folder before, in and after every
operation, as a kill would leave it; another fails from the n-th operation on, as a full or broken
disk: from each such state, a resumed run must end in the same result, bit for bit. A third
simulates a power cut at any operation, and loses none, one, all but one, or all of the changes that
fsync had not confirmed: every committed checkpoint must still be there.

Not covered: a disk that confirms a write and loses it. On macOS, fsync does not empty the drive's
own cache; F_FULLFSYNC would, slowly. The manifest is the defence here: `verify` compares the
content of every file with it before a checkpoint is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from offbook.errors import ConfigError, DiskError, OffbookError
from offbook.files.disk import Disk
from offbook.files.manifest import MANIFEST as MANIFEST
from offbook.files.manifest import listed
from offbook.files.manifest import sha256 as sha256
from offbook.files.manifest import verify as verify

PARTIAL = ".partial"
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILING = (errno.EIO, errno.EROFS)


disk = Disk()


def commit(final: Path, files: Iterable[tuple[str, bytes]], known: Collection[str] = ()) -> None:
    """Write a folder of a training, whole or not at all.

    What was committed there before is removed first.

    Args:
        final: the folder.
        files: names and contents; consumed one by one, so that they need not all be in memory.
        known: as for `discard`.

    Raises:
        DiskError: when the disk is full or fails; what was written is removed.
    """
    make_folder(final.parent)
    discard(final, known)
    partial = _partial(final)
    manifest = {}
    try:
        with _as_disk_error(partial, resumes=True):
            disk.make_folder(partial)
        for name, content in files:
            with _as_disk_error(partial / name, len(content), resumes=True):
                disk.write(partial / name, content)
            manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        last = json.dumps(manifest, indent=2).encode()
        with _as_disk_error(partial / MANIFEST, len(last), resumes=True):
            disk.write(partial / MANIFEST, last)
            disk.sync_folder(partial)
            if os.path.lexists(final):  # what others put there is left
                _move_contents(final, partial)
            disk.rename(partial, final)
            disk.sync_folder(final.parent)
    except DiskError:
        if not _others_in(partial):  # else `clean` puts them back
            with suppress(OSError):
                disk.remove(partial)
        raise


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to write large files into; it gets its name when they are complete, or is removed.

    Raises:
        ConfigError: when there is something of that name.
        DiskError: when the disk is full or fails.
    """
    if final.exists():
        raise ConfigError(
            "exists already", where=str(final), fix="remove it, or name another folder"
        )
    make_folder(final.parent)
    partial = _partial(final)
    with _as_disk_error(final):
        if partial.exists():  # of a process that was killed
            disk.remove(partial)
        disk.make_folder(partial)
    try:
        yield partial
        with _as_disk_error(final):
            for path in partial.iterdir():
                disk.sync(path)
            disk.sync_folder(partial)
            disk.rename(partial, final)
            disk.sync_folder(final.parent)
    except BaseException as error:
        with suppress(OSError):
            disk.remove(partial)
        if isinstance(error, OSError) and error.errno in (*FULL, *FAILING):
            with _as_disk_error(final):  # any other is not about the disk
                raise
        raise


def replace_file(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all. An existing file of that name is replaced.

    Raises:
        DiskError: when the disk is full or fails; the file is as before.
    """
    partial = _partial(file)
    with _as_disk_error(file, len(content)):
        try:
            disk.write(partial, content)
            disk.rename(partial, file)
        except OSError:
            with suppress(OSError):
                disk.remove(partial)
            raise
        disk.sync_folder(file.parent)


def append(file: Path, content: bytes) -> None:
    """Add to the end of a file of a training. A kill may leave only a part of `content` there.

    Raises:
        DiskError: when the disk is full or fails.
    """
    with _as_disk_error(file, len(content), resumes=True):
        disk.append(file, content)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, where they do not exist.

    Returns:
        Those that were made, the innermost first.

    Raises:
        DiskError: when one cannot be made; then none is.
    """
    if folder.is_dir():
        return []
    made = [] if folder.parent.exists() else make_folder(folder.parent)
    try:
        with _as_disk_error(folder):
            disk.make_folder(folder)
            disk.sync_folder(folder.parent)
    except DiskError:
        remove_empty(made)
        raise
    return [folder, *made]


def discard(path: Path, known: Collection[str] = ()) -> None:
    """Remove a file or link, or a committed folder, but nothing that others put in the folder.

    Args:
        path: to remove, if it exists.
        known: names of files that are removed from a folder whose manifest cannot be read.

    Raises:
        DiskError: when it cannot be removed.
    """
    if not os.path.lexists(path):
        return
    partial = _partial(path)
    with _as_disk_error(path):
        if path.is_dir() and not path.is_symlink():
            written, present = listed(path), _names(path)
            ours = known if written is None else written
            if not present <= set(ours):
                for name in ours:  # only names in the folder: a manifest may name any path
                    if name in present:
                        disk.remove(path / name)
                disk.sync_folder(path)
                return
        if os.path.lexists(partial):
            disk.remove(partial)
        disk.rename(path, partial)  # so that no half of it keeps its name
        disk.sync_folder(path.parent)
        disk.remove(partial)


def clean(folder: Path, names: Collection[str] = ("*",)) -> None:
    """Remove what a killed process left unfinished in a folder.

    Args:
        folder: to look in.
        names: patterns of the names that were being written or removed.
    """
    leftovers = {path for name in names for path in folder.glob(_partial(Path(name)).name)}
    for leftover in sorted(leftovers):
        with _as_disk_error(leftover):
            if _others_in(leftover):
                final = leftover.with_name(leftover.name.removeprefix(".").removesuffix(PARTIAL))
                make_folder(final)
                _move_contents(leftover, final, leave=listed(leftover) or ())
            else:
                disk.remove(leftover)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes; the system frees the lock when the process ends.

    Raises:
        ConfigError: when another process holds the lock.
    """
    held = FileLock(folder / LOCK, blocking=False)
    with _as_disk_error(folder / LOCK):
        if (folder / LOCK).is_symlink():  # in a copy made of links; its lock is its own
            (folder / LOCK).unlink()
        try:
            held.acquire()
        except Timeout:
            raise ConfigError(
                "another training run is writing here",
                where=str(folder),
                fix="wait until it has finished, stop it, or set another output_dir",
            ) from None
    try:
        yield
    finally:
        held.release()


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes are free on the disk.

    Raises:
        DiskError: when they are not.
    """
    free = disk.free(folder)
    if needed > free:
        raise DiskError(
            f"{needed:,} bytes needed for checkpoints and the adapter, {free:,} free",
            where=str(folder),
            fix="free some space, set another output_dir, or lower train.save_total_limit",
        )


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder and its subfolders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _partial(path: Path) -> Path:
    """The name of a file or folder while it is incomplete."""
    return path.with_name(f".{path.name}{PARTIAL}")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _others_in(partial: Path) -> bool:
    """Whether `commit` has moved what others had put in a folder into its successor."""
    ours = listed(partial)
    return ours is not None and not _names(partial) <= set(ours)


def _move_contents(source: Path, target: Path, leave: Collection[str] = ()) -> None:
    """Move what is in a folder into another, except the names in `leave`; remove the folder."""
    for entry in sorted(source.iterdir()):
        if entry.name not in leave:
            moved = target / entry.name
            while os.path.lexists(moved):
                moved = moved.with_name(f"{moved.name}.kept")
            disk.rename(entry, moved)
    disk.sync_folder(target)
    disk.remove(source)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that are still empty, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _as_disk_error(path: Path, needed: int = 0, resumes: bool = False) -> Iterator[None]:
    """Raise an OSError as a DiskError, with the bytes needed, if any, and free.

    `resumes` says that a training writes this, which can be resumed.
    """
    try:
        yield
    except OffbookError:  # some derive from OSError
        raise
    except OSError as error:
        what = f"cannot write ({error.strerror})"
        if needed:
            free = "an unknown number of"
            with suppress(OSError):
                free = f"{disk.free(next(p for p in path.parents if p.exists())):,}"
            what += f": {needed:,} bytes needed, {free} free"
        fix = "free some space" if error.errno in FULL else "check the disk and its permissions"
        if resumes:
            fix = f"{fix}, then continue with --resume; what was committed before is intact"
        raise DiskError(what, where=str(path), fix=fix) from error
