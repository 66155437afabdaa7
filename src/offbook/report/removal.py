"""Remove a run with what was made from it, but no file of the user's."""

from __future__ import annotations

from pathlib import Path

from offbook.errors import CheckpointError
from offbook.evaluation.ledger import FILE as LEDGER
from offbook.evaluation.record import FILE as EVALUATION
from offbook.evaluation.record import Evaluation
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
        Evaluation.read(run.path / EVALUATION)
    except (CheckpointError, OSError):
        return names  # another file of that name, or a damaged one
    return [*names, EVALUATION, *([LEDGER] if (run.path / LEDGER).is_file() else [])]
