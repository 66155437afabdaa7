"""The evaluation in a run directory: written, and read while it is about the run's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offbook.evaluation.ledger import to_parquet
from offbook.evaluation.record import Evaluation, LedgerRow
from offbook.files import storage
from offbook.files.storage import sha256
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.runs.derived import EVALUATION, LEDGER
from offbook.runs.directory import RunDirectory


def hash_adapter(folder: Path | None) -> str:
    """The SHA-256 of an adapter's weights; empty where there are none."""
    file = folder and folder / ADAPTER_WEIGHTS
    return sha256(file) if file and file.is_file() else ""


def read_evaluation(run: RunDirectory) -> Evaluation | None:
    """The evaluation in a run directory; None where there is none of its present weights.

    Raises:
        CheckpointError: when the file is damaged.
    """
    file = run.path / EVALUATION
    if not file.is_file():
        return None
    found = Evaluation.read(file)
    folder = run.adapter if found.subject == "result" else dict(run.steps()).get(found.step or 0)
    return found if found.adapter == hash_adapter(folder) else None


def write_evaluation(run: RunDirectory, found: Evaluation, ledger: Sequence[LedgerRow]) -> Path:
    """Write an evaluation, and the ledger where there is one, into the directory of its run."""
    if ledger:
        storage.replace_file(run.path / LEDGER, to_parquet(ledger))
    storage.replace_file(run.path / EVALUATION, found.to_json())
    return run.path / EVALUATION
