"""The files that are made from a run, and whether offbook wrote them."""

from __future__ import annotations

from pathlib import Path

REPORT = "report.html"
# How the files begin where offbook made them; others of these names are the user's.
MARKS = {
    REPORT: b'<meta name="generator" content="offbook report',
    "evaluation.json": b'{\n "findings": [',
}
BEGINNING = 4096  # bytes that have the mark


def is_marked(file: Path, name: str) -> bool:
    """Whether offbook wrote a file that is made from a run.

    Args:
        file: to look at.
        name: of what it would be, such as REPORT.
    """
    try:
        with file.open("rb") as stream:
            return MARKS[name] in stream.read(BEGINNING)
    except OSError:
        return False
