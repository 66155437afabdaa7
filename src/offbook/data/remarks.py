"""What was read in another way than a file's name or format says, counted for one notice each."""

from __future__ import annotations


class Remarks:
    """Counts each remark, with its first place."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, where: str) -> None:
        """Count a remark, such as "a comma after a row"."""
        count, first = self._found.get(what, (0, where))
        self._found[what] = (count + 1, first)

    def clear(self) -> None:
        """Forget everything, before the files are read again."""
        self._found.clear()

    def lines(self) -> list[str]:
        """`rows.jsonl:1: a comma after a row (812 times)`"""
        return [
            f"{where}: {what}" + (f" ({count:,} times)" if count > 1 else "")
            for what, (count, where) in self._found.items()
        ]
