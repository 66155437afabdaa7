"""The faults of a data set: those that say the same are one line with a count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from offbook.errors import DataError, first_few

MAX_FAULTS = 20  # different ones
MAX_PLACES = 5


class Faults:
    """Collects errors of rows."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str | None], list[str]] = {}

    def add(self, error: DataError) -> None:
        """Count an error."""
        self._places.setdefault((error.what, error.fix), []).append(error.where or "")

    @property
    def many(self) -> bool:
        """Whether there are so many different ones that it is time to stop."""
        return len(self._places) >= MAX_FAULTS

    def error(self, others: Sequence[DataError], files: Sequence[Path]) -> DataError | None:
        """One error, with a line for each of `others` and each fault, or None.

        The lines are in the order of the files and of the rows in them.
        """
        found = list(others)
        for (what, fix), places in self._places.items():
            if len(places) > 1:
                file = _split(places[0])[0]
                shown = first_few([p.removeprefix(f"{file}:") for p in places], MAX_PLACES)
                what = f"{what} (in {len(places):,} rows: {shown})"
            found.append(DataError(what, where=places[0] or None, fix=fix))
        order = {str(path): number for number, path in enumerate(files)}

        def place(error: DataError) -> tuple[int, list[int]]:
            file, numbers = _split(error.where or "")
            return order.get(file, -1), numbers

        lines = [str(error) for error in sorted(found, key=place)]
        if self.many:
            lines.append(f"stopped after {MAX_FAULTS} different errors; there may be more")
        return DataError("\n".join(lines)) if lines else None


def _split(where: str) -> tuple[str, list[int]]:
    """The file of a place, and its line and column as far as they are there."""
    found = re.fullmatch(r"(.+?)((?::\d+){0,2})", where, re.DOTALL)
    return (found[1], [int(n) for n in found[2].split(":")[1:]]) if found else (where, [])
