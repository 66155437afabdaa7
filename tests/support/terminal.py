"""A command in a terminal of its own, typed into and read from."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """Runs `offbook` in a terminal of `width` columns; a context manager.

    Args:
        arguments: of the command.
        folder: to run it in.
        width: in columns.
    """

    def __init__(self, arguments: list[str], folder: Path, width: int = 80) -> None:
        self.process, self._file = pty.fork()
        if self.process == 0:  # pragma: no cover
            os.chdir(folder)
            os.environ.pop("COLUMNS", None)
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, "-m", "offbook", *arguments])
        size = struct.pack("HHHH", 24, width, 0, 0)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, size)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._file)

    def type(self, keys: str | bytes) -> None:
        """Press keys."""
        os.write(self._file, keys.encode() if isinstance(keys, str) else keys)

    def read_until(self, text: str, seconds: float = 200) -> str:
        """What is written up to a text, without colours and cursor movements."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if not select.select([self._file], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._file, 65536)
            except OSError:  # closed by the command
                data = b""
            assert data, self.seen
            self.seen = ESCAPES.sub("", self.seen + data.decode(errors="replace"))
            self.seen = self.seen.replace("\r", "")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def wait(self) -> int:
        """The exit code of the command, when it has ended."""
        while True:
            try:
                if not os.read(self._file, 65536):
                    break
            except OSError:
                break
        status = os.waitpid(self.process, 0)[1]
        self.process = 0
        return os.waitstatus_to_exitcode(status)
