"""The folders for what is made once and used again: converted models and compiled kernels."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from offbook.errors import DiskError

DAY = 86_400  # seconds


def cache_folders() -> list[Path]:
    """Where to look for what was made before: the user's cache, and a private temporary folder."""
    user, temporary = _of_user(), _temporary()
    return [*([user] if user else []), *([temporary] if _is_private(temporary) else [])]


def cache_folder() -> Path:
    """The folder for what is made now.

    `$XDG_CACHE_HOME/offbook`, by default `~/.cache/offbook`; where that cannot be written, a
    private folder in the temporary one.

    Raises:
        DiskError: when neither can be written.
    """
    folder = _of_user()
    if folder is not None and _can_write(folder):
        return folder
    try:
        folder = _temporary()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (_is_private(folder) and _can_write(folder)):  # another user made it first
            folder = Path(tempfile.mkdtemp(prefix="offbook-"))
    except OSError as error:
        raise DiskError(
            f"nothing can be kept there, nor in {_of_user()} ({error.strerror})",
            where=str(folder),
            fix="set XDG_CACHE_HOME to a folder that can be written",
        ) from None
    return folder


def _of_user() -> Path | None:
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "offbook"
    except RuntimeError:  # there is no home
        return None


def _temporary() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir(), f"offbook-{user}")


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _is_private(folder: Path) -> bool:
    """Whether nobody else can put files there: what is in it is loaded and run."""
    try:
        facts = folder.lstat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(facts.st_mode)
    own = facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(facts.st_mode) and own


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which is removed at the end if it is still there.

    What processes that were killed have left there is removed first. A living process holds a lock
    on its folder, which the system releases when it ends, however it ends.

    Raises:
        OSError: when it cannot be made.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _lock(parent, wait=True):
            for left in parent.glob(f"{prefix}*"):
                if not _is_in_use(left):
                    shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.enter_context(_lock(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_in_use(folder: Path) -> bool:
    """Whether a process holds the lock; without locks (Windows), whether it is not a day old."""
    try:
        with _lock(folder) as locks:
            return not locks and time.time() - folder.stat().st_mtime < DAY
    except OSError:
        return True


@contextmanager
def _lock(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on a folder. Yields False where there are no locks; raises OSError if held."""
    if sys.platform == "win32":
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # the file system has none
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
