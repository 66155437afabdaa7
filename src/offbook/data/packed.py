"""Packed files of rows: `.gz`, `.zst` and the files in a `.zip`, read as a stream."""

from __future__ import annotations

import gzip
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from offbook.errors import DataError, first_line

PACKERS = (".gz", ".zst")
ARCHIVE = ".zip"
# What files begin with: what they are, and the endings that say so.
MAGIC = {
    b"\x1f\x8b": ("a gzip file", (".gz",)),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", (".zst",)),
    b"PK\x03\x04": ("a ZIP file", (ARCHIVE, ".xlsx")),
    b"PAR1": ("a Parquet file", (".parquet",)),
    b"\xd0\xcf\x11\xe0": ("an old Office file", ()),
}


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


def command_for(path: Path | Packed, program: str, ending: str) -> str:
    """A command that writes a copy of a file, which a packed one has to be unpacked for.

    Args:
        path: the file.
        program: with its arguments, after which the file comes.
        ending: of the copy's name.
    """
    file = inside(path)
    copy = file.with_name(file.stem + ending)
    command = f"{program} {shlex.quote(str(file))} > {shlex.quote(str(copy))}"
    return f"unpack it, and run {command}" if isinstance(path, Packed) else command


def members(path: Path) -> Iterator[Packed]:
    """The files of a `.zip` that are not hidden, in the order of their names."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in sorted(archive.namelist()) if not name.endswith("/")]
    yield from (Packed(path, name) for name in names if not is_hidden(Path(name)))


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


def refuse_misnamed(path: Path) -> None:
    """Refuse a file that is of another kind than its name says.

    Raises:
        DataError: with the name that it should have.
    """
    with path.open("rb") as file:
        start = file.read(4)
    suffix = path.suffix.lower()
    what, endings = next((m for magic, m in MAGIC.items() if start.startswith(magic)), ("", ()))
    if not what and start and suffix in PACKERS:
        fix = f"rename it to {path.stem}"
        raise DataError("it is not packed", where=str(path), fix=fix)
    if what and suffix not in endings:
        stem = path.name if set(endings) & set(PACKERS) else path.stem
        fix = "open it in the program that made it, and save it as .xlsx"
        if endings:
            fix = f"rename it to {' or '.join(stem + ending for ending in endings)}"
        raise DataError(f"it is {what}, whatever its name says", where=str(path), fix=fix)
