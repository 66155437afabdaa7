"""Runs that are stopped, killed or damaged, and resumed, end in the adapter of a whole run."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from offbook.engine.memory import ByDevice
from offbook.errors import ConfigError, DiskError
from offbook.files import storage
from offbook.monitor import Monitor
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training import plan as planner
from offbook.training.train import train
from support.crashes import kill_points, survive
from support.disks import Failing, Power, error_of
from support.runs import StopAfter, curve, hashes, stop_after
from support.tiny import ROWS

MakeConfig = Callable[..., Config]
SAVES = ("train.max_steps=3", "train.save_steps=1")


def resume_or_start(config: Config) -> Path:
    """What a user does after a crash: resume the run, or start it if it had not started."""
    run = Path(config.output_dir)
    result = train(config, resume=(run / "config.yaml").exists())
    assert result.finished
    return result.run


# Stopped.


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of one row or two, so that a step has several."""
    monkeypatch.setattr(planner, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(planner, "MOST_TOKENS", ByDevice(cpu=1, gpu=1))


@pytest.mark.parametrize("total", [7, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("small_batches")
def test_a_run_stopped_within_each_of_its_steps_ends_in_the_same_bits(
    tiny_config: MakeConfig, tmp_path: Path, total: int
) -> None:
    # Two steps an epoch, of 4 and 3 rows; so total / 2 epochs.
    settings = (f"train.max_steps={total}", "data.validation=0", "train.batch_size=4")
    whole = train(tiny_config(*settings, f"output_dir={tmp_path / 'whole'}"))
    steps, finished = [], False
    while not finished:
        monitor = StopAfter(1, batches=1)
        result = train(
            tiny_config(*settings),
            resume=bool(steps),
            monitor=monitor,
            should_stop=monitor.should_stop,
        )
        steps.append(result.steps)
        finished = result.finished
        assert (result.run / "adapter").exists() == finished
    assert steps == list(range(1, total + 1))
    assert hashes(result.run) == hashes(whole.run)
    assert curve(result.run) == curve(whole.run)


def test_a_stopped_evaluation_is_repeated(tiny_config: MakeConfig, tmp_path: Path) -> None:
    settings = ("train.max_steps=4", "train.eval_steps=2")
    whole = train(tiny_config(*settings, f"output_dir={tmp_path / 'whole'}"))
    for calls in (0, 3, 6):  # before an evaluation or within a step
        config = tiny_config(*settings)
        stopped = train(config, overwrite=True, should_stop=stop_after(calls))
        assert not stopped.finished
        assert curve(resume_or_start(config)) == curve(whole.run)
        assert hashes(stopped.run) == hashes(whole.run)


# Killed.


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_operation_needs_no_repair(
    tiny_config: MakeConfig, tmp_path: Path, every: int
) -> None:
    config = tiny_config(*SAVES, "train.save_total_limit=1")
    whole = train(tiny_config(*SAVES, f"output_dir={tmp_path / 'whole'}")).run
    moments = kill_points(config, tmp_path / "copies")
    assert len(moments) > 70
    newest_ones = [newest(RunDirectory(moment), lambda text: None) for moment in moments]
    steps = [int(folder.name.removeprefix("step-")) if folder else 0 for folder in newest_ones]
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2, 3}
    survive(config, moments[::every], whole)


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_while_resuming_or_overwriting_needs_no_repair(
    tiny_config: MakeConfig, tmp_path: Path, every: int
) -> None:
    config = tiny_config(*SAVES)
    whole = train(tiny_config(*SAVES, f"output_dir={tmp_path / 'whole'}")).run
    run = Path(config.output_dir)
    moments = kill_points(config, tmp_path / "killed")
    shutil.rmtree(run)
    shutil.copytree(moments[len(moments) * 2 // 3], run)
    again = kill_points(config, tmp_path / "resumed", resume=True)
    survive(config, again[::every], whole)
    train(tiny_config("train.max_steps=2", "train.seed=1"), overwrite=True)
    again = kill_points(config, tmp_path / "overwritten", overwrite=True)
    removed = next(k for k, moment in enumerate(again) if not (moment / "config.yaml").exists())
    survive(config, again[removed::every], whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_at_any_moment_can_be_resumed(tiny_base: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("OFFBOOK_TEST_KILLS", "3"))
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    command = [
        *(sys.executable, "-m", "offbook", "train", "data.train=rows.jsonl", "train.batch_size=3"),
        *(f"model.base={tiny_base}", "model.precision=float32", "data.validation=0.2"),
        *("train.max_steps=80", "train.save_steps=2", "train.eval_steps=40"),
    ]

    def run_for(seconds: float, run: str) -> bool:
        """Start or resume, as a user would; returns whether it finished before it was killed."""
        started = (tmp_path / run / "config.yaml").exists()
        arguments = [*command, f"output_dir={run}", *(["--resume"] if started else [])]
        try:  # a process that takes longer is killed with SIGKILL
            done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        assert done.returncode == 0, done.stderr
        return True

    began = time.monotonic()
    assert run_for(600, "whole")
    longest = time.monotonic() - began
    chance, killed, finished = random.Random(kills), 0, False
    while killed < kills or not finished:
        finished = run_for(chance.uniform(0, longest) if killed < kills else 600, "run")
        killed += not finished
        if finished:
            assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
            shutil.rmtree(tmp_path / "run")


# The power is cut.


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_a_power_cut_loses_no_committed_checkpoint(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    disk = Power(real)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "disk", disk)
        train(tiny_config(*SAVES, "train.save_total_limit=1", f"output_dir={real / 'run'}"))
    whole = RunDirectory(real / "run")

    def done(*operation: str) -> int:
        """Operations until a rename is certainly on the disk."""
        name = disk.log.index(("rename", *map(Path, operation)))
        return disk.log.index(("sync_folder", Path(operation[1]).parent), name) + 1

    started = done("run/.config.yaml.partial", "run/config.yaml")
    saved = [
        done(f"run/checkpoints/.step-{k}.partial", f"run/checkpoints/step-{k}") for k in (1, 2, 3)
    ]
    states = 0
    for operations in range(0, len(disk.log) + 1, every):
        committed = sum(operations >= count for count in saved)
        for root in disk.cut(operations, tmp_path / "cut"):
            states += 1
            run = RunDirectory(root / "run")
            if run.config_file.exists():
                assert run.config_file.read_bytes() == whole.config_file.read_bytes()
                assert run.receipt() == whole.receipt()
                folder = newest(run, lambda text: None)
                assert (int(folder.name[-1]) if folder else 0) >= committed
                logged = [record.step for record in run.metrics()]
                assert max(logged, default=0) >= committed
            else:
                assert operations < started
    assert states > 300 / every


# The disk is full, or broken.


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_fails_at_any_operation(
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    every: int,
) -> None:
    config = tiny_config(*SAVES)
    run = RunDirectory(Path(config.output_dir))
    whole = train(tiny_config(*SAVES, f"output_dir={tmp_path / 'whole'}")).run
    for operations in count(0, every):
        disk = Failing(operations, error)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "disk", disk)
            problem = error_of(lambda: train(config))
        if not disk.failed:
            break
        assert os.strerror(error) in str(problem)
        said = r"cannot write \(.*\)(: [1-9][\d,]* bytes needed, [1-9][\d,]* free)?; "
        assert re.search(said, str(problem))
        if error == errno.ENOSPC:
            assert not list(run.path.rglob(".*.partial"))
        assert hashes(resume_or_start(config)) == hashes(whole)
        shutil.rmtree(run.path)
    assert operations > 40


def test_a_run_without_room_on_the_disk_does_not_start(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(storage.Disk):
        def free(self, folder: Path) -> int:
            return 100_000

    monkeypatch.setattr(storage, "disk", Small())
    with pytest.raises(DiskError) as caught:
        train(tiny_config())
    # 2 layers of 7 projections: 2 (4 (32 + 32) + 2 (32 + 48) + (48 + 32)) r parameters.
    needed = 2 * (4 * 64 + 3 * 80) * 8 * 4 * (3 * (2 + 1 + 1) + 1)
    assert f"{needed:,} bytes needed for checkpoints and the adapter, 100,000 free" in str(
        caught.value
    )
    assert not (Path(tiny_config().output_dir) / "config.yaml").exists()


# Two at once.


def test_a_second_training_is_refused_at_once(tiny_config: MakeConfig) -> None:
    class Second(Monitor):
        def step(self, step: int, loss: float, examples_per_second: float) -> None:
            for how in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(ConfigError, match="another training run is writing here"):
                    train(tiny_config(), **how)

    assert train(tiny_config(), monitor=Second()).finished
    assert train(tiny_config(), resume=True).finished


def test_beside_a_training_another_is_started_as_advised(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    class Second(Monitor):
        def step(self, step: int, loss: float, examples_per_second: float) -> None:
            with pytest.raises(ConfigError) as caught:
                train(tiny_config())
            assert caught.value.fix == (
                "wait until it has finished, stop it, or set another output_dir"
            )
            if step == 1:
                assert train(tiny_config(f"output_dir={tmp_path / 'other'}")).finished

    assert train(tiny_config(), monitor=Second()).finished
    assert train(tiny_config(), overwrite=True).finished  # after waiting
    assert not train(tiny_config(), overwrite=True, should_stop=stop_after(2)).finished
    assert train(tiny_config(), overwrite=True).finished  # after stopping it


# The real model.


@pytest.mark.slow
def test_a_real_model_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def config(name: str) -> Config:
        return Config.load(
            None, ["train.max_steps=4", "train.batch_size=4", f"output_dir={tmp_path / name}"]
        )

    whole = train(config("whole")).run
    for step in (1, 2, 3):
        run = tmp_path / f"stopped-{step}"
        monitor = StopAfter(step)
        train(config(run.name), monitor=monitor, should_stop=monitor.should_stop)
        assert newest(RunDirectory(run), pytest.fail) == run / "checkpoints" / f"step-{step}"
        train(config(run.name), resume=True)
        assert hashes(run) == hashes(whole)
