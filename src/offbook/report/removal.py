"""Remove a run with what was made from it, but no file of the user's."""

from __future__ import annotations

from pathlib import Path

from offbook.errors import CheckpointError
from offbook.evaluation.record import FILE as EVALUATION
from offbook.report.contents import read_evaluation
from offbook.report.page import FILE as REPORT
from offbook.report.page import is_ours
from offbook.runs.directory import RunDirectory


def remove_run(run: RunDirectory) -> list[Path]:
    """Remove a run, its evaluation and its report.

    Exports, rows that were corrected while it was served, and all other files are left.

    Returns:
        What is left in the folder.

    Raises:
        CheckpointError: when there is no run.
        ConfigError: when it is being trained.
    """
    return run.remove(derived_files(run))


def derived_files(run: RunDirectory) -> list[str]:
    """The names of the files that were made from a run, where offbook wrote them."""
    names = [REPORT] if is_ours(run.path / REPORT) else []
    try:
        return [*names, EVALUATION] if read_evaluation(run) else names
    except CheckpointError:
        return names  # another file of that name, or a damaged one
