"""A run directory: the contract between training and the commands that use its result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from offbook.config import Config
from offbook.errors import CheckpointError, ConfigError, DiskError
from offbook.files import storage
from offbook.monitor import EvalMetrics, Metrics, SkippedStep, SmallerMicroBatches, StepMetrics
from offbook.runs.receipt import Receipt

# The first class whose fields a line of metrics.jsonl has.
LINE: TypeAdapter[Metrics] = TypeAdapter(
    Annotated[
        StepMetrics | EvalMetrics | SkippedStep | SmallerMicroBatches | Metrics,
        Field(union_mode="left_to_right"),
    ]
)
# Settings that may change when a run is resumed, since they do not change its result.
FREE_ON_RESUME = ("logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to")


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run.

    config.yaml         the settings, resolved
    receipt.json        what went in: versions, and hashes of base, template and data
    metrics.jsonl       a line for each logged step, each evaluation and each irregular step
    checkpoints/step-N  what is needed to continue after N optimizer steps
    adapter/            the result, a plain PEFT folder

    `config.yaml` is written last and removed first: where it exists, there is a run.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def receipt_file(self) -> Path:
        return self.path / "receipt.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run.

        Raises:
            CheckpointError: when there is none.
        """
        run = cls(Path(path))
        if not (run.config_file.is_file() and run.receipt_file.is_file()):
            raise CheckpointError(
                "not a run directory", where=str(path), fix="`offbook train` makes one"
            )
        return run

    def config(self) -> Config:
        """The settings the run was started with."""
        return Config.load(self.config_file)

    def settings_to_resume(self, requested: Config) -> Config:
        """The settings to continue with: the run's own, except those that may change.

        Raises:
            ConfigError: when `requested` differs in a setting that would change the result.
        """
        own = self.config()
        if requested.model.precision == "auto":
            requested = requested.override(f"model.precision={own.model.precision}")
        if requested.data.max_length == "auto":
            requested = requested.override(f"data.max_length={own.data.max_length}")
        free = {key: getattr(requested.train, key) for key in FREE_ON_RESUME}
        train = own.train.model_copy(update=free)
        merged = own.model_copy(update={"train": train, "output_dir": requested.output_dir})
        before, now = merged.flat(), requested.flat()
        changed = [
            f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if now[key] != before[key]
        ]
        if changed:
            raise ConfigError(
                f"the run was started with other settings: {'; '.join(changed)}",
                where=str(self.path),
                fix="resume with the same settings, or start again with --overwrite",
            )
        return merged

    def make(self) -> None:
        """Create the directory, before time is spent on loading.

        Raises:
            ConfigError: when it cannot be created there.
        """
        try:
            storage.make_folder(self.path)
        except DiskError as error:
            cause = error.__cause__
            if isinstance(cause, (PermissionError, NotADirectoryError, FileExistsError)):
                raise ConfigError(
                    f"cannot be made ({cause.strerror})", where=str(self.path), fix="set output_dir"
                ) from None
            raise

    def refuse_to_replace(self) -> None:
        """Raise ConfigError when the directory contains a run already."""
        if self.config_file.exists():
            raise ConfigError(
                "there is a run here already",
                where=str(self.path),
                fix="continue it with --resume, replace it with --overwrite, or set another "
                "output_dir",
            )

    def clean(self) -> None:
        """Remove unfinished files of a process that was killed."""
        for folder in (self.path, self.checkpoints):
            storage.clean(folder)

    def require_space(self, adapter_bytes: int, keep: int) -> None:
        """Check that the disk has room for what training writes.

        Args:
            adapter_bytes: a checkpoint has this size three times, with the optimizer's two moments.
            keep: checkpoints to keep; there is one more until the oldest is removed.

        Raises:
            DiskError: when there is not enough room.
        """
        present = storage.size_of(self.checkpoints) + storage.size_of(self.adapter)
        storage.require_space(self.path, adapter_bytes * (3 * (keep + 1) + 1) - present)

    def begin(self, config: Config, receipt: Receipt) -> None:
        """Start a new run, and remove a run that was there before."""
        for part in (self.config_file, self.checkpoints, self.adapter, self.metrics_file):
            storage.discard(part)
        storage.replace_file(self.receipt_file, receipt.to_json())
        storage.replace_file(self.config_file, config.to_yaml().encode())

    def receipt(self) -> Receipt:
        """What went into the run.

        Raises:
            CheckpointError: when the file is damaged.
        """
        return Receipt.read(self.receipt_file)

    def metrics(self) -> Iterator[Metrics]:
        """The lines of `metrics.jsonl`, oldest first; an incomplete last line is left out.

        Raises:
            CheckpointError: when another line is damaged.
        """
        return (record for record, _ in self._metrics_lines())

    def log(self, record: Metrics) -> None:
        """Append a line to `metrics.jsonl`."""
        storage.append(self.metrics_file, json.dumps(asdict(record)).encode() + b"\n")

    def forget_after(self, step: int) -> None:
        """Remove the lines of later steps from `metrics.jsonl`."""
        kept = [line + b"\n" for record, line in self._metrics_lines() if record.step <= step]
        storage.replace_file(self.metrics_file, b"".join(kept))

    def _metrics_lines(self) -> Iterator[tuple[Metrics, bytes]]:
        """Each line of `metrics.jsonl`, read and as it is in the file."""
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                yield LINE.validate_python(json.loads(line)), line
            except ValueError:
                if number < len(lines):
                    raise CheckpointError(
                        "the line is damaged",
                        where=f"{self.metrics_file}:{number}",
                        fix="remove it; training does not depend on it",
                    ) from None


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint folder's name; None for other folders."""
    match = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(match[1]) if match else None
