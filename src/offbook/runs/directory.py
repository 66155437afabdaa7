"""A run directory: the contract between training and everything that uses its result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offbook.config import Config
from offbook.errors import CheckpointError, ConfigError, DiskError
from offbook.files import storage

# Settings that may change when a run is resumed, since they do not change its result.
FREE_ON_RESUME = ("logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to")


@dataclass(frozen=True)
class RunDirectory:
    """Where the parts of a run are.

    config.yaml         the settings, resolved
    receipt.json        what went in: versions and hashes of base, template and data
    metrics.jsonl       a line per logged step and per validation
    checkpoints/step-N  what a run needs to go on after N optimizer steps
    adapter/            the result, a plain PEFT folder

    `config.yaml` is written last and removed first: where it is, there is a run.
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

    def settings_to_resume(self, asked: Config) -> Config:
        """The settings to go on with: the run's own, with what may change taken from `asked`.

        Raises:
            ConfigError: when `asked` contradicts the run in a way that changes its result.
        """
        begun = self.config()
        if asked.model.precision == "auto":
            asked = asked.override(f"model.precision={begun.model.precision}")
        free = {key: getattr(asked.train, key) for key in FREE_ON_RESUME}
        train = begun.train.model_copy(update=free)
        merged = begun.model_copy(update={"train": train, "output_dir": asked.output_dir})
        before, now = merged.flat(), asked.flat()
        changed = [
            f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if now[key] != before[key]
        ]
        if changed:
            raise ConfigError(
                f"the run was begun with other settings: {'; '.join(changed)}",
                where=str(self.path),
                fix="resume with the same settings, or train anew with --overwrite",
            )
        return merged

    def make(self) -> None:
        """Make the directory, before time is spent on loading.

        Raises:
            ConfigError: when it cannot be made there.
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
        """Make sure that there is no run yet.

        Raises:
            ConfigError: when there is one.
        """
        if self.config_file.exists():
            raise ConfigError(
                "there is a run here already",
                where=str(self.path),
                fix="go on with --resume, replace it with --overwrite, or set another output_dir",
            )

    def clean(self) -> None:
        """Remove what a killed process has left unfinished."""
        for folder in (self.path, self.checkpoints):
            storage.clean(folder)

    def require_space(self, adapter: int, keep: int) -> None:
        """Make sure that what a training writes has room on the disk.

        Args:
            adapter: its bytes; a checkpoint holds it and two moments of the same size.
            keep: checkpoints to keep; one more is there while the oldest is not removed yet.

        Raises:
            DiskError: when there is not enough room.
        """
        there = storage.size_of(self.checkpoints) + storage.size_of(self.adapter)
        storage.require_space(self.path, adapter * (3 * (keep + 1) + 1) - there)

    def begin(self, config: Config, receipt: dict[str, Any]) -> None:
        """Begin a new run, in the place of any that was there."""
        for part in (self.config_file, self.checkpoints, self.adapter, self.metrics_file):
            storage.discard(part)
        text = json.dumps(receipt, indent=2, ensure_ascii=False)
        storage.replace_file(self.receipt_file, f"{text}\n".encode())
        storage.replace_file(self.config_file, config.to_yaml().encode())

    def receipt(self) -> dict[str, Any]:
        """What went into the run."""
        contents: dict[str, Any] = json.loads(self.receipt_file.read_text(encoding="utf-8"))
        return contents

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first, without a last one that a kill has torn.

        Raises:
            CheckpointError: when another line is not what was written.
        """
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                if number < len(lines):
                    raise CheckpointError(
                        "the line is damaged",
                        where=f"{self.metrics_file}:{number}",
                        fix="remove it; training does not depend on it",
                    ) from None

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        storage.append(self.metrics_file, _line(record))

    def forget_after(self, step: int) -> None:
        """Cut `metrics.jsonl` back to what had happened by `step`."""
        kept = [_line(record) for record in self.metrics() if record["step"] <= step]
        storage.replace_file(self.metrics_file, b"".join(kept))


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
