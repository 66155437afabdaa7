"""Packed files of rows: `.gz`, `.zst` and the files in a `.zip`, read as a stream."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from offbook.errors import DataError, first_line

PACKERS = (".gz", ".zst")
ARCHIVE = ".zip"


@dataclass(frozen=True)
class Packed:
    """A file that is packed.

    Attributes:
        path: of what is on the disk.
        member: the name of a file in a `.zip`; empty for the others.
    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def inside(self) -> Path:
        """What it is called when it is unpacked, beside the packed one."""
        return (
            self.path.with_name(Path(self.member).name)
            if self.member
            else self.path.with_suffix("")
        )

    def open(self) -> BinaryIO:
        """The bytes of the unpacked file."""
        if self.member:
            return cast(BinaryIO, zipfile.ZipFile(self.path).open(self.member))
        if self.path.suffix.lower() == ".gz":
            return cast(BinaryIO, gzip.open(self.path))
        import pyarrow as pa

        return cast(BinaryIO, pa.CompressedInputStream(str(self.path), "zstd"))


def open_bytes(path: Path | Packed) -> BinaryIO:
    """The bytes of a file, unpacked."""
    return path.open() if isinstance(path, Packed) else path.open("rb")


def inside(path: Path | Packed) -> Path:
    """The file itself, or what a packed one is when it is unpacked."""
    return path.inside if isinstance(path, Packed) else path


def members(path: Path, suffixes: Sequence[str]) -> Iterator[Packed]:
    """The files of a `.zip` that end in one of these, in the order of their names."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in sorted(archive.namelist()) if not name.endswith("/")]
    for name in names:
        if not is_hidden(Path(name)) and name.lower().endswith(tuple(suffixes)):
            yield Packed(path, name)


def is_hidden(path: Path) -> bool:
    """Whether a file, or a folder that it is in, is a program's own, as `.ipynb_checkpoints` is."""
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


@contextmanager
def unpacking(path: Path | Packed) -> Iterator[None]:
    """Raise what is wrong with a packed file as a DataError."""
    try:
        yield
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"it cannot be unpacked ({first_line(error)})", where=str(path)) from None
    except (RuntimeError, NotImplementedError) as error:  # zipfile's: a password, a rare method
        if not isinstance(path, Packed):
            raise
        raise DataError(f"it cannot be unpacked ({first_line(error)})", where=str(path)) from None
