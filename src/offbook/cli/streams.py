"""The streams of the command line: output that fails, characters it lacks, and closed streams."""

from __future__ import annotations

import errno
import io
import os
import select
import sys

from offbook.errors import DiskError
from offbook.files.storage import FULL


class ReaderGoneError(Exception):
    """Nothing reads our output any more, as in `offbook check ... | head`."""


class Output(io.FileIO):
    """A file descriptor that is written to until it fails; what follows is discarded.

    Args:
        descriptor: 1 or 2.
        required: whether a failure ends the command. Results are required. Progress and notices are
            not, so that a training whose log is on a full disk goes on.

    Attributes:
        failure: why nothing is written any more.
    """

    def __init__(self, descriptor: int, required: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.required = required
        self.failure: OSError | None = None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Write some of the data, or discard all of it.

        Raises:
            ReaderGoneError: when results are no longer read.
            DiskError: when they cannot be written.
        """
        try:
            while self.failure is None:
                written = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])  # another program made it non-blocking
        except OSError as error:
            self.failure = error
            if self.required and error.errno == errno.EPIPE:
                raise ReaderGoneError from None
            if self.required:
                raise DiskError(
                    f"cannot write ({error.strerror})",
                    where="the output",
                    fix="free some space" if error.errno in FULL else "send it elsewhere",
                ) from None
        return len(data)


def prepare() -> None:
    """Make the streams safe to use; those that a caller has replaced are left as they are.

    A closed one becomes the null device: the next file that is opened would get its number, and
    what a library prints would be written to that file. A character that an output's encoding lacks
    is written as a backslash escape. Bytes of the input that are no text become lone surrogates,
    which are refused where they are used.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        stream = getattr(sys, name)
        if stream is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
        elif stream is getattr(sys, f"__{name}__"):
            raw = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED, itself
            if descriptor and type(raw) is io.FileIO:
                stream = io.TextIOWrapper(
                    io.BufferedWriter(Output(descriptor, required=descriptor == 1)),
                    stream.encoding,
                    line_buffering=stream.line_buffering or raw is stream.buffer,
                )
                setattr(sys, name, stream)
            stream.reconfigure(errors="backslashreplace" if descriptor else "surrogateescape")


def notices_failure() -> OSError | None:
    """Why notices could not be written; None where they were, or where nobody reads them."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, Output) else None
    return None if failure is None or failure.errno == errno.EPIPE else failure
