"""The primitive operations on the disk, through which all of `storage` goes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


class Disk:
    """The primitive operations. Each is visible when it returns, or raises OSError.

    What `write` and `append` wrote is on the disk then; a name is only after `sync_folder`.

    Tests replace `disk` with a subclass, to record what a run does and to make it fail.
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
        """Make a folder; its parent must exist."""
        folder.mkdir()

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        if os.name == "nt":
            return  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # not supported by some network file systems
                raise
        finally:
            os.close(descriptor)

    def sync(self, file: Path) -> None:
        """Wait until the content of a file is on the disk."""
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder; a file replaces an existing one."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file or a link, or a folder with its contents."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def free(self, folder: Path) -> int:
        """Free bytes on the file system that holds `folder`."""
        return shutil.disk_usage(folder).free
