"""The loss of each row when it is first trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.engine.engine import Losses, row_losses
from offbook.files import storage
from offbook.monitor import Monitor, RowLosses, StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.schedule import Schedule
from offbook.training.setup import prepare
from offbook.training.train import train
from support.disks import Snapshots
from support.runs import records_of

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("tokens", [1, 10**6])
def test_they_are_the_losses_of_the_rows_alone(
    tiny_config: MakeConfig, engine: str, tokens: int
) -> None:
    config = tiny_config("lora.lora_dropout=0", "data.validation=0", f"train.engine={engine}")
    loaded = prepare(config, Monitor())
    examples, device = loaded.inputs.training, loaded.inputs.device
    losses: Losses = []
    step = loaded.engine.make_step(examples, tokens, device)
    mean = loaded.engine.accumulate(step, [0], losses=losses)
    found = row_losses(losses)
    assert list(found) == list(range(7))
    for row, loss in found.items():
        alone = loaded.engine.make_step([examples[row]], 10**6, device)
        assert loaded.engine.mean_loss(alone) == pytest.approx(loss, rel=1e-5)
    total = sum(found[row] * count for row, count in enumerate(examples.supervised))
    assert total / examples.supervised.sum() == pytest.approx(mean, rel=1e-5)


def test_each_row_is_logged_once(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("data.validation=0", "train.logging_steps=4")).run
    logged = records_of(RowLosses, run)
    schedule = Schedule(7, 3, 42)
    assert [record.step for record in logged] == [1, 2, 3]  # of five
    for record in logged:
        assert record.rows == schedule.rows(record.step - 1).tolist()
        assert len(record.losses) == len(record.rows)
        assert record.losses == [round(loss, 4) for loss in record.losses]
    assert sorted(row for record in logged for row in record.rows) == list(range(7))
    for record in records_of(StepMetrics, run):
        assert record.memory > 50_000_000


def test_they_do_not_wait_for_the_disk(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(storage.Disk):
        appends = 0

        def append(self, file: Path, content: bytes) -> None:
            Counting.appends += 1
            super().append(file, content)

    monkeypatch.setattr(storage, "disk", Counting())
    run = train(tiny_config("train.max_steps=40", "train.logging_steps=20", "train.batch_size=1"))
    # Two lines of steps, and one of each validation: before, and after each epoch of five steps.
    assert Counting.appends == 2 + 1 + 40 // 5
    lines = RunDirectory(run.run).metrics_file.read_bytes().splitlines()
    assert len(lines) == Counting.appends + 5


def test_they_are_there_for_every_step_of_a_checkpoint(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.batch_size=1", "train.save_steps=2", "train.logging_steps=100")
    disk = Snapshots(Path(config.output_dir), tmp_path / "copies")
    monkeypatch.setattr(storage, "disk", disk)
    train(config)
    for moment in disk.taken:
        run = RunDirectory(moment)
        newest = max((step for step, _ in run.steps()), default=0)
        rows = [record.step for record in run.metrics() if isinstance(record, RowLosses)]
        assert rows[:newest] == list(range(1, newest + 1))
