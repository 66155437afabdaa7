"""Errors a user can fix: what is wrong, where, and what to do about it.

    OffbookError           exit code
      ConfigError              2      settings and arguments (ValueError)
        ModelError             2      bases, tokenizers, chat templates
      DataError                3      data files and rows (ValueError)
      CheckpointError          4      run directories and checkpoints (RuntimeError)
      DiskError                5      a full or failing disk (OSError)
      NonFiniteError           6      a loss, gradient or weight (ArithmeticError)
      MemoryPlanError          7      not enough memory (MemoryError)
      ExportError              8      an export that is another model (RuntimeError)
      EngineError              1      the fast path computes something else (ArithmeticError)
      PeerLostError            1      another process of a training has gone (ConnectionError)

Each class also derives from the standard exception in parentheses, so that `except ValueError`
works in a notebook. The command line turns them into exit codes.
"""

from __future__ import annotations

import difflib
import os
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

INTERRUPTED = 130  # 128 + SIGINT: the exit code of a run stopped by Ctrl-C after it has saved
TERMINATED = 143  # 128 + SIGTERM; a closed terminal (SIGHUP) ends a run the same way
MAX_QUOTED = 120  # characters of a user's text that an error quotes
# These reorder the text after them, so that a reply could look like something else.
DIRECTION_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class OffbookError(Exception):
    """A problem the user can fix. Its text is `where: what; fix`.

    Args:
        what: the problem, in words a user knows.
        where: the place to look at: `file:line`, a key, a folder.
        fix: what to do about it, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        place = f"{where}: " if where else ""
        advice = f"; {fix}" if fix else ""
        super().__init__(f"{place}{what}{advice}")


class ConfigError(OffbookError, ValueError):
    """A setting or an argument that cannot be used."""

    exit_code = 2


class DataError(OffbookError, ValueError):
    """A data file or a row that cannot be used."""

    exit_code = 3


class ModelError(ConfigError):
    """A base model, tokenizer or chat template that cannot be used as it is."""


class CheckpointError(OffbookError, RuntimeError):
    """A run directory or checkpoint that cannot be used."""

    exit_code = 4


class DiskError(OffbookError, OSError):
    """A disk that is full or fails."""

    exit_code = 5


class EngineError(OffbookError, ArithmeticError):
    """The fast path does not compute what the plain path does."""


class PeerLostError(OffbookError, ConnectionError):
    """Another process of a training has gone without a word, or the network has."""


class ExportError(OffbookError, RuntimeError):
    """An export that does not answer as the run does."""

    exit_code = 8


class MemoryPlanError(OffbookError, MemoryError):
    """A run that does not fit in memory."""

    exit_code = 7


class NonFiniteError(OffbookError, ArithmeticError):
    """A loss, gradient or weight that is not finite."""

    exit_code = 6


def shorten(text: str) -> str:
    """Text as an error quotes it: at most MAX_QUOTED characters, and then `...`."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def quoted(word: str | Path) -> str:
    """A path or text as one word of a shell command that is printed."""
    text = str(word)
    if text.startswith("-"):
        text = f"./{text}"  # else it would be an option
    if text.isprintable():
        return shlex.quote(text)
    # Printed as they are, control characters and bytes that are no text would be lost.
    escaped = (
        chr(b) if 32 <= b < 127 and chr(b) not in "'\\" else f"\\x{b:02x}"
        for b in os.fsencode(text)
    )
    return f"$'{''.join(escaped)}'"


def printable(text: str) -> str:
    """Text from a model or a file with its control characters escaped.

    A terminal obeys control characters: they can change its title or hide text. Halves of surrogate
    pairs cannot be written at all.
    """
    return "".join(
        f"\\x{ord(char):02x}"
        if (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")
        or char in DIRECTION_CONTROLS
        else char
        for char in text
    )


def first_few(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """`a, b, and 3 more`: a list for a message, of which at most `most` names are shown."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"and {len(names) - most:,} more")
    return separator.join(shown)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def stem(name: str) -> str:
    """What a file is called, before any suffix: `rows` for `Rows.jsonl.gz`."""
    return Path(name).name.casefold().partition(".")[0]


def suggest(
    word: str, candidates: Sequence[str], compared: Callable[[str], str] = str.casefold
) -> str | None:
    """`did you mean "x"?` for the candidate most similar to `word`, or None if none is similar.

    Upper and lower case make no difference, and `word` itself is never suggested.

    Args:
        word: what was written.
        candidates: what may have been meant.
        compared: what of them; `stem` of files, which are not alike for their suffix.
    """
    if len(word) > MAX_QUOTED:
        return None  # similar to none of them; difflib would need seconds to find that out
    folded = {compared(name): name for name in reversed(candidates) if name != word}
    near = difflib.get_close_matches(compared(word), folded, n=1, cutoff=0.6)
    return f'did you mean "{folded[near[0]]}"?' if near else None
