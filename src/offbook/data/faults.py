"""The faults of a data set: those that say the same are one line with a count."""

from __future__ import annotations

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

    def error(self, first: DataError | None = None) -> DataError | None:
        """One error, with a line for `first` and for each fault, or None."""
        lines = [str(first)] if first else []
        for (what, fix), places in self._places.items():
            if len(places) > 1:
                file = places[0].rpartition(":")[0]
                shown = first_few([p.removeprefix(f"{file}:") for p in places], MAX_PLACES)
                what = f"{what} (in {len(places):,} rows: {shown})"
            lines.append(str(DataError(what, where=places[0] or None, fix=fix)))
        if self.many:
            lines.append(f"stopped after {MAX_FAULTS} different errors; there may be more")
        return DataError("\n".join(lines)) if lines else None
