"""The runs in a folder, each in a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offbook.errors import ConfigError, OffbookError
from offbook.evaluation.saved import read_evaluation
from offbook.files.storage import size_of
from offbook.report.contents import total_steps, written
from offbook.report.curves import Curves
from offbook.runs.directory import RunDirectory

DEPTH = 2  # folders below the one that is listed, such as `sweep/r8`


@dataclass(frozen=True)
class Summary:
    """A run in a line.

    Attributes:
        run: its directory.
        data: the rows it was trained on.
        base: that it was trained on.
        step, steps: optimizer steps done, and in all; None where a receipt does not say.
        finished: whether it has its result.
        before, after: validation loss of the base and of the last validation.
        verdict: of its evaluation.
        size: bytes of its files.
        written: when it was last logged to.
        problem: why it cannot be read.
    """

    run: Path
    data: str = ""
    base: str = ""
    step: int = 0
    steps: int | None = None
    finished: bool = False
    before: float | None = None
    after: float | None = None
    verdict: str | None = None
    size: int = 0
    written: str | None = None
    problem: str | None = None


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder and in the folders below, by name; the folder itself where it is one.

    Raises:
        ConfigError: when there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(
            "no such folder", where=str(folder), fix="`offbook train` makes a run in ./runs"
        )
    return list(_runs_in(folder, DEPTH))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if RunDirectory(folder).begun:
        yield folder
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _runs_in(child, depth - 1)


def summarize(path: Path) -> Summary:
    """A run in a line; one that cannot be read says why."""
    run = RunDirectory(path)
    try:
        config, receipt = run.config(), run.receipt()
        curves, evaluation = Curves.read(run), read_evaluation(run)
    except OffbookError as error:
        return Summary(path, size=size_of(path), written=written(run), problem=str(error))
    return Summary(
        run=path,
        data=config.data.name,
        base=Path(config.model.base).name,
        step=curves.step,
        steps=total_steps(config, receipt),
        finished=run.finished,
        before=curves.before,
        after=curves.after,
        verdict=evaluation.verdict if evaluation else None,
        size=size_of(path),
        written=written(run),
    )
