"""A run directory: the contract between training and everything that uses its result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offbook.config import Config
from offbook.errors import CheckpointError, ConfigError

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

    def reserve(self, overwrite: bool) -> None:
        """Make the directory, before time is spent on loading.

        Raises:
            ConfigError: when it cannot be made, or holds a run that may not be overwritten.
        """
        if self.config_file.exists() and not overwrite:
            raise ConfigError(
                "there is a run here already",
                where=str(self.path),
                fix="go on with --resume, replace it with --overwrite, or set another output_dir",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot be made ({error.strerror})", where=str(self.path), fix="set output_dir"
            ) from None

    def begin(self, config: Config, receipt: dict[str, Any]) -> None:
        """Begin a new run, in the place of any that was there."""
        for part in (self.checkpoints, self.adapter):
            shutil.rmtree(part, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)
        self.config_file.write_text(config.to_yaml(), encoding="utf-8")
        text = json.dumps(receipt, indent=2, ensure_ascii=False)
        self.receipt_file.write_text(text + "\n", encoding="utf-8")

    def receipt(self) -> dict[str, Any]:
        """What went into the run."""
        contents: dict[str, Any] = json.loads(self.receipt_file.read_text(encoding="utf-8"))
        return contents

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first."""
        if self.metrics_file.exists():
            with self.metrics_file.open(encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Cut `metrics.jsonl` back to what had happened by `step`."""
        kept = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        self.metrics_file.write_text("".join(kept), encoding="utf-8")
