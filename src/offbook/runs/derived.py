"""The files that are made from a run, and whether offbook wrote them."""

from __future__ import annotations

from pathlib import Path

REPORT, EVALUATION, LEDGER = "report.html", "evaluation.json", "ledger.parquet"
LEDGER_MARK = {"made by": "offbook eval"}  # in the metadata, which a Parquet file ends with
# What the files have in them where offbook made them; others of these names are the user's.
MARKS = {
    REPORT: b'<meta name="generator" content="offbook report',
    EVALUATION: b'{\n "findings": [',
    LEDGER: LEDGER_MARK["made by"].encode(),
}
SEEN = 8192  # bytes at the beginning and at the end that may have the mark


def is_marked(file: Path, name: str) -> bool:
    """Whether offbook wrote a file that is made from a run.

    Args:
        file: to look at.
        name: of what it would be, such as REPORT.
    """
    try:
        with file.open("rb") as stream:
            beginning = stream.read(SEEN)
            stream.seek(max(file.stat().st_size - SEEN, 0))
            return MARKS[name] in beginning or MARKS[name] in stream.read(SEEN)
    except OSError:
        return False
