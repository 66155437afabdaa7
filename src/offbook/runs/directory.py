"""A run directory: the contract between training and the commands that use its result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from offbook.errors import CheckpointError, ConfigError, DiskError, quoted
from offbook.files import storage
from offbook.monitor import (
    EvalMetrics,
    Metrics,
    RowLosses,
    SkippedStep,
    SmallerMicroBatches,
    StepMetrics,
)
from offbook.runs.derived import MARKS, is_marked
from offbook.runs.receipt import Receipt
from offbook.settings.config import RECEIPT, RUN_SETTINGS, Config
from offbook.settings.file import write_yaml

# The first class whose fields a line of metrics.jsonl has.
LINE: TypeAdapter[Metrics] = TypeAdapter(
    Annotated[
        StepMetrics | EvalMetrics | RowLosses | SkippedStep | SmallerMicroBatches | Metrics,
        Field(union_mode="left_to_right"),
    ]
)
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
# What is known to be offbook's in an adapter or a checkpoint whose manifest cannot be read.
COMMITTED = (
    *("adapter_model.safetensors", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "README.md"),
    *(OPTIMIZER, STATE, storage.MANIFEST),
)


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run.

    config.yaml         the settings, resolved
    receipt.json        what went in: versions, and hashes of base, template and data
    metrics.jsonl       a line for each logged step, each evaluation and each irregular step
    checkpoints/step-N  what is needed to continue after N optimizer steps
    adapter/            the result, a plain PEFT folder

    `receipt.json` marks the other names, and that of the lock, as offbook's: where there is none,
    they are files of the user, unless the lock is empty. `config.yaml` is written last and removed
    first: with both, there is a run. No file says where the run is, so it can be moved and copied.
    Other files in the folder are left alone.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / RUN_SETTINGS

    @property
    def receipt_file(self) -> Path:
        return self.path / RECEIPT

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
        if not run.begun:
            raise CheckpointError(
                "not a run directory", where=str(path), fix="`offbook train` makes one"
            )
        return run

    @property
    def begun(self) -> bool:
        """Whether there is a run."""
        return self.config_file.is_file() and self.receipt_file.is_file()

    @property
    def finished(self) -> bool:
        """Whether there is an adapter, intact or not."""
        return any((self.adapter / name).exists() for name in COMMITTED)

    @property
    def command(self) -> str:
        """The command that continues the run, as it is typed."""
        return f"offbook train {quoted(self.path)} --resume"

    def config(self) -> Config:
        """The settings of the run; their `output_dir` is where it is now."""
        return Config.load(self.config_file, [])

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Make and lock the directory; at the end, remove it again if no run has begun in it.

        Raises:
            ConfigError: when it cannot be made there, another process writes to it, or a file
                of the user has a name that a run needs.
        """
        self._refuse_other_files()
        try:
            made = storage.make_folder(self.path)
        except DiskError as error:
            cause = error.__cause__
            if isinstance(cause, (PermissionError, NotADirectoryError, FileExistsError)):
                what = f"cannot be made ({cause.strerror})"
                if self.path.is_file():
                    what = "it is a file, where a folder is to be made"
                raise ConfigError(what, where=str(self.path), fix="set output_dir") from None
            raise
        held = self.path / storage.LOCK
        new = not held.exists()
        try:
            with storage.lock(self.path):
                try:
                    yield
                finally:
                    if new and not self.receipt_file.exists():
                        with suppress(OSError):  # Windows keeps an open file
                            held.unlink()
        finally:
            storage.remove_empty(made)

    def refuse_to_replace(self) -> None:
        """Raise ConfigError when the directory contains a run already."""
        if self.config_file.exists():
            fix = "replace it with --overwrite, or set another output_dir"
            if not self.finished:
                fix = (
                    "replace it with --overwrite, set another output_dir, or continue it with "
                    f"`{self.command}`"
                )
            raise ConfigError("there is a run here already", where=str(self.path), fix=fix)

    def _refuse_other_files(self) -> None:
        try:
            ours = {"base", "data"} <= dict(json.loads(self.receipt_file.read_bytes())).keys()
        except (OSError, ValueError, TypeError):
            ours = False
        parts, lock = [*self._parts], self.path / storage.LOCK
        with suppress(OSError):
            if lock.lstat().st_size:  # ours is an empty file
                parts.append(lock)
        for part in () if ours else parts:
            if os.path.lexists(part):
                name = self.path.resolve().name
                other = Path("runs", name)
                if other.resolve() == self.path.resolve():
                    other = Path("runs", f"{name}-2")
                raise ConfigError(
                    f"{part.name} is here, and is not that of a run",
                    where=str(self.path),
                    fix=f"set another output_dir, such as {quoted(f'output_dir={other}')}",
                )

    @property
    def _parts(self) -> tuple[Path, ...]:
        """All that a run writes."""
        return (
            self.config_file,
            self.checkpoints,
            self.adapter,
            self.metrics_file,
            self.receipt_file,
        )

    def clean(self) -> None:
        """Remove unfinished files of a process that was killed."""
        storage.clean(self.path, [part.name for part in self._parts])
        storage.clean(self.checkpoints, ["step-*"])

    def steps(self) -> list[tuple[int, Path]]:
        """The checkpoints, damaged or not, by step, the oldest first."""
        return sorted(
            (step, folder)
            for folder in self.checkpoints.glob("step-*")
            if (step := step_of(folder)) is not None
            and any((folder / name).exists() for name in COMMITTED)
        )

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
        """Start a new run, and remove a run that was there before.

        Raises:
            DiskError: when the disk is full or fails; then there is none.
        """
        self._remove()
        try:
            storage.replace_file(self.receipt_file, receipt.to_json())
            self.write_settings(config)
        except DiskError:
            self.undo_begin()
            raise

    def write_settings(self, config: Config) -> None:
        """Write `config.yaml`, without the place of the run."""
        values = config.model_dump(mode="json", exclude={"output_dir"})
        storage.replace_file(self.config_file, write_yaml(values).encode())

    def undo_begin(self) -> None:
        """Remove a run that has taken no step, as far as the disk allows it."""
        with suppress(DiskError):
            self._remove()
            storage.discard(self.receipt_file)

    def remove(self) -> list[Path]:
        """Remove a run and what was made from it, but no file that others put in its folder.

        Returns:
            What is left there, such as exports; the folder is gone where nothing is.

        Raises:
            CheckpointError: when there is no run.
            ConfigError: when it is being trained.
        """
        if not self.receipt_file.is_file():
            self.open(self.path)  # which says what is wrong
        with self.claim():
            self.clean()
            self._remove()
            storage.discard(self.receipt_file)
            with suppress(OSError):  # Windows keeps an open file
                (self.path / storage.LOCK).unlink()
        left = sorted(self.path.iterdir())
        storage.remove_empty([] if self.path.is_symlink() else [self.path])
        return left

    def _remove(self) -> None:
        """Remove all that a run wrote except its receipt, and nothing else."""
        storage.discard(self.config_file)
        for _, folder in () if self.checkpoints.is_symlink() else self.steps():
            storage.discard(folder, COMMITTED)
        storage.discard(self.checkpoints)  # unless it has files of the user's
        storage.discard(self.adapter, COMMITTED)
        storage.discard(self.metrics_file)
        for name in MARKS:  # they are about a run that is gone
            if is_marked(self.path / name, name):
                storage.discard(self.path / name)

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

    def log(self, *records: Metrics) -> None:
        """Append lines to `metrics.jsonl`."""
        lines = [json.dumps(asdict(record)).encode() + b"\n" for record in records]
        storage.append(self.metrics_file, b"".join(lines))

    def forget_after(self, step: int) -> None:
        """Remove the lines of later steps from `metrics.jsonl`.

        The file is always written again. It may be a link in a copy of the run; then lines that are
        appended would appear in the original, too.
        """
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
