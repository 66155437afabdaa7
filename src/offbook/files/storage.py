"""The only place a run directory is written through: files and folders appear whole or not at all.

A file is written under another name, forced to the disk (fsync) and renamed; then the names in its
folder are forced to the disk. A folder of files goes the same way, a manifest of their hashes being
the last of them. So a process may be killed, or the power fail, at any moment: what has its final
name is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from offbook.errors import ConfigError, DiskError

MANIFEST = "manifest.json"
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """The primitive operations. Each is done when it returns, or raises OSError.

    Tests put a subclass in the place of `disk`, to see what a run does and to make it fail.
    """

    def write(self, file: Path, content: bytes) -> None:
        """Write a file, and wait until its content is on the disk."""
        with file.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def append(self, file: Path, content: bytes) -> None:
        """Add to the end of a file, and wait until it is on the disk."""
        with file.open("ab") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def make_folder(self, folder: Path) -> None:
        """Make a folder in one that is there."""
        folder.mkdir()

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        if os.name == "nt":
            return  # Windows does not open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot
                raise
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name; a file takes the place of one that has it."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder and all that is in it."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def free(self, folder: Path) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(folder).free


disk = Disk()


def commit(final: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a folder, whole or not at all, in the place of any that is there.

    Args:
        final: the folder.
        files: names and contents; taken one by one, so that they need not all be in memory.

    Raises:
        DiskError: when the disk is full or fails; then nothing is left of it.
    """
    make_folder(final.parent)
    discard(final)
    partial = _partial(final)
    manifest = {}
    try:
        with _explained(partial):
            disk.make_folder(partial)
        for name, content in files:
            with _explained(partial / name, len(content)):
                disk.write(partial / name, content)
            manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        last = json.dumps(manifest, indent=2).encode()
        with _explained(partial / MANIFEST, len(last)):
            disk.write(partial / MANIFEST, last)
            disk.sync_folder(partial)
            disk.rename(partial, final)
            disk.sync_folder(final.parent)
    except DiskError:
        with suppress(OSError):
            disk.remove(partial)
        raise


def verify(folder: Path) -> str | None:
    """Why a committed folder is not what was written; None when it is.

    Files that have been added to it do no harm: file managers do that.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for name, facts in manifest.items():
            size = (folder / name).stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size:,} bytes instead of {facts['bytes']:,}"
            if sha256(folder / name) != facts["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def replace_file(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all, in the place of any that is there.

    Raises:
        DiskError: when the disk is full or fails; then the file is as before.
    """
    partial = _partial(file)
    with _explained(file, len(content)):
        try:
            disk.write(partial, content)
            disk.rename(partial, file)
        except OSError:
            with suppress(OSError):
                disk.remove(partial)
            raise
        disk.sync_folder(file.parent)


def append(file: Path, content: bytes) -> None:
    """Add to the end of a file; a kill may leave it torn.

    Raises:
        DiskError: when the disk is full or fails.
    """
    with _explained(file, len(content)):
        disk.append(file, content)


def make_folder(folder: Path) -> None:
    """Make a folder, and those it is in, where they are not there.

    Raises:
        DiskError: when it cannot be made.
    """
    if folder.is_dir():
        return
    if not folder.parent.exists():
        make_folder(folder.parent)
    with _explained(folder):
        disk.make_folder(folder)
        disk.sync_folder(folder.parent)


def discard(path: Path) -> None:
    """Remove a file or folder, if there is one. A folder that is half removed has lost its name.

    Raises:
        DiskError: when it cannot be removed.
    """
    if not path.exists():
        return
    partial = _partial(path)
    with _explained(path):
        if partial.exists():
            disk.remove(partial)
        disk.rename(path, partial)
        disk.sync_folder(path.parent)
        disk.remove(partial)


def clean(folder: Path) -> None:
    """Remove what a killed process has left unfinished in a folder."""
    for leftover in sorted(folder.glob(_partial(Path("*")).name)):
        with _explained(leftover):
            disk.remove(leftover)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep others from writing to a folder; the system lets go of it when the process ends.

    Raises:
        ConfigError: when another process has it.
    """
    held = FileLock(folder / LOCK, blocking=False)
    with _explained(folder / LOCK):
        try:
            held.acquire()
        except Timeout:
            raise ConfigError(
                "another training is writing here",
                where=str(folder),
                fix="wait until it has finished, stop it, or set another output_dir",
            ) from None
    try:
        yield
    finally:
        held.release()


def require_space(folder: Path, needed: int) -> None:
    """Make sure that so many bytes may be written into a folder.

    Raises:
        DiskError: when they may not.
    """
    free = disk.free(folder)
    if needed > free:
        raise DiskError(
            f"{needed:,} bytes needed for checkpoints and the adapter, {free:,} free",
            where=str(folder),
            fix="make room, set another output_dir, or lower train.save_total_limit",
        )


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _partial(path: Path) -> Path:
    """The name of something that is not whole yet, or no longer."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _explained(path: Path, needed: int = 0) -> Iterator[None]:
    """Tell of the disk's errors in the user's terms."""
    try:
        yield
    except OSError as error:
        free = "an unknown number of"
        with suppress(OSError):
            free = f"{disk.free(next(p for p in path.parents if p.exists())):,}"
        fix = "make room" if error.errno in FULL else "check the disk and its permissions"
        raise DiskError(
            f"cannot write ({error.strerror}): {needed:,} bytes needed, {free} free",
            where=str(path),
            fix=f"{fix}, and go on with --resume; what was committed before is intact",
        ) from error
