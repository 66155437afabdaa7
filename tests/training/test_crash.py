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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path

import pytest

from offbook.config import Config
from offbook.errors import CheckpointError, ConfigError, DiskError
from offbook.files import storage
from offbook.files.storage import sha256
from offbook.inference.chat import Chat
from offbook.monitor import Monitor
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory
from offbook.training import plan as planner
from offbook.training.loop import train
from support.disks import Failing, Power, Snapshots, error_of
from support.stepping import Listener, stop_after
from support.tiny import ROWS

MakeConfig = Callable[..., Config]
SAVES = ("train.max_steps=3", "train.save_steps=1")


def hashes(run: Path) -> tuple[str, ...]:
    """Of the adapter and of the optimizer's moments in the last checkpoint."""
    last = newest(RunDirectory(run), pytest.fail)
    assert last is not None
    return tuple(
        sha256(file)
        for file in (
            run / "adapter" / "adapter_model.safetensors",
            last / "adapter_model.safetensors",
            last / "optimizer.safetensors",
        )
    )


class StopAfter(Listener):
    """Stops a run after this many steps, and this many micro-batches of the next step."""

    def __init__(self, steps: int, batches: int = 0) -> None:
        super().__init__()
        self.steps, self.micro_batches = steps, batches

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        self.steps -= 1

    def should_stop(self) -> bool:
        if self.steps <= 0:
            self.micro_batches -= 1
        return self.micro_batches < 0


def go_on(config: Config) -> Path:
    """What a user does after a crash: resume the run, or start it if it had not started."""
    run = Path(config.output_dir)
    result = train(config, resume=(run / "config.yaml").exists())
    assert result.finished
    return result.run


def curve(run: Path) -> list[dict[str, object]]:
    """The metrics, without the time they took."""
    lines = map(asdict, RunDirectory(run).metrics())
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


# Stopped.


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of one row or two, so that a step has several."""
    monkeypatch.setattr(planner, "FEWEST_TOKENS", 1)
    monkeypatch.setitem(planner.MOST_TOKENS, "cpu", 1)


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
        assert curve(go_on(config)) == curve(whole.run)
        assert hashes(stopped.run) == hashes(whole.run)


# Killed.


def kill_points(config: Config, copies: Path, **how: bool) -> list[Path]:
    """Copies of a run directory as a kill before, within or after each disk operation leaves it."""
    disk = Snapshots(Path(config.output_dir), copies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "disk", disk)
        train(config, **how)
    disk.take()
    return disk.taken


def survive(config: Config, moments: list[Path], whole: Path) -> None:
    run = Path(config.output_dir)
    for moment in moments:
        shutil.rmtree(run)
        shutil.copytree(moment, run)
        committed = newest(RunDirectory(run), lambda text: None)
        heard = Listener()
        if (run / "config.yaml").exists():
            assert train(config, resume=True, monitor=heard).finished
            step = committed.name.removeprefix("step-") if committed else "0"
            assert f"resuming after step {step}" in heard.heard
        else:
            assert train(config).finished
        assert hashes(run) == hashes(whole)
        assert curve(run) == curve(whole)
        assert not list(run.rglob(".*.partial"))


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
    begun = next(k for k, moment in enumerate(again) if not (moment / "config.yaml").exists())
    survive(config, again[begun::every], whole)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("OFFBOOK_TEST_KILLS", "30"))
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    command = [
        *(sys.executable, "-m", "offbook", "train", "data.train=rows.jsonl", "train.batch_size=3"),
        *(f"model.base={tiny_base}", "model.precision=float32", "data.validation=0.2"),
        *("train.max_steps=80", "train.save_steps=2", "train.eval_steps=40"),
    ]

    def run_for(seconds: float, run: str) -> bool:
        """Train or go on, whichever a user would; whether it finished before it was killed."""
        begun = (tmp_path / run / "config.yaml").exists()
        arguments = [*command, f"output_dir={run}", *(["--resume"] if begun else [])]
        try:  # which kills (SIGKILL) what takes longer
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
        """Operations until a rename is on the disk for certain."""
        name = disk.log.index(("rename", *map(Path, operation)))
        return disk.log.index(("sync_folder", Path(operation[1]).parent), name) + 1

    begun = done("run/.config.yaml.partial", "run/config.yaml")
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
                assert run.config() == whole.config()
                assert run.receipt() == whole.receipt()
                folder = newest(run, lambda text: None)
                assert (int(folder.name[-1]) if folder else 0) >= committed
                logged = [record.step for record in run.metrics()]
                assert max(logged, default=0) >= committed
            else:
                assert operations < begun
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
        assert re.search(r"[\d,]+ bytes needed, [\d,]+ free", str(problem))
        if error == errno.ENOSPC:
            assert not list(run.path.rglob(".*.partial"))
        assert hashes(go_on(config)) == hashes(whole)
        shutil.rmtree(run.path)
    assert operations > 40


def test_a_run_that_has_no_room_does_not_begin(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(storage.Disk):
        def free(self, folder: Path) -> int:
            return 100_000

    monkeypatch.setattr(storage, "disk", Small())
    with pytest.raises(DiskError) as caught:
        train(tiny_config())
    # 2 layers of 7 projections: 2 (4 (32 + 32) + 2 (32 + 48) + (48 + 32)) r parameters.
    needed = 2 * (4 * 64 + 3 * 80) * 8 * 4 * (3 * (2 + 1) + 1)
    assert f"{needed:,} bytes needed for checkpoints and the adapter, 100,000 free" in str(
        caught.value
    )
    assert not (Path(tiny_config().output_dir) / "config.yaml").exists()


# Checkpoints are damaged.


@pytest.fixture
def three_checkpoints(tiny_config: MakeConfig) -> RunDirectory:
    """A finished run that has lost its adapter and kept three checkpoints."""
    settings = ("train.save_steps=1", "train.save_total_limit=3")
    run = RunDirectory(train(tiny_config(*settings)).run)
    shutil.rmtree(run.adapter)
    return run


def damages(run: RunDirectory) -> Iterator[Callable[[], None]]:
    """Things that happen to the newest checkpoint, each on an intact one."""
    three, four, five = (run.checkpoints / f"step-{k}" for k in (3, 4, 5))
    chance = random.Random(0)
    files = sorted(file.name for file in five.iterdir())

    def flip(file: Path, share: float, bit: int) -> None:
        content = bytearray(file.read_bytes())
        content[int(len(content) * share)] ^= 1 << bit
        file.write_bytes(content)

    for _ in range(100):
        file, share, bit = five / chance.choice(files), chance.random(), chance.randrange(8)
        yield lambda file=file, share=share, bit=bit: flip(file, share, bit)
    for _ in range(50):
        file, share = five / chance.choice(files), chance.random()
        yield lambda file=file, share=share: os.truncate(file, int(file.stat().st_size * share))
    for name in files:
        yield (five / name).unlink
        if name != "adapter_config.json":  # the same in all
            yield lambda name=name: shutil.copy(four / name, five / name)
    yield lambda: (shutil.rmtree(five), shutil.copytree(three, five))


def test_the_newest_checkpoint_that_is_intact_is_found(three_checkpoints: RunDirectory) -> None:
    run = three_checkpoints
    intact = run.path / "copy"
    shutil.copytree(run.checkpoints / "step-5", intact)
    total = 0
    for damage in damages(run):
        damage()
        heard: list[str] = []
        folder = newest(run, heard.append)
        assert folder is not None
        assert folder.name == "step-4"
        assert len(heard) == 1
        assert heard[0].startswith("skipping step-5: ")
        shutil.rmtree(run.checkpoints / "step-5")
        shutil.copytree(intact, run.checkpoints / "step-5")
        total += 1
    assert total == 160
    assert newest(run, pytest.fail) == run.checkpoints / "step-5"


def test_resume_takes_the_newest_checkpoint_that_is_intact(
    three_checkpoints: RunDirectory, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run = three_checkpoints
    whole = train(tiny_config(f"output_dir={tmp_path / 'whole'}")).run
    (run.checkpoints / "step-5" / "optimizer.safetensors").unlink()
    shutil.rmtree(run.checkpoints / "step-4")
    shutil.copytree(run.checkpoints / "step-3", run.checkpoints / "step-4")
    monitor = StopAfter(1)
    settings = tiny_config("train.save_total_limit=1", "train.save_steps=1")
    train(settings, resume=True, monitor=monitor, should_stop=monitor.should_stop)
    assert newest(run, lambda text: None) == run.checkpoints / "step-4"
    train(settings, resume=True)
    assert [text for text in monitor.heard if "step" in text] == [
        "skipping step-5: optimizer.safetensors is missing",
        "skipping step-4: its state is that of step 3",
        "resuming after step 3",
    ]
    assert hashes(run.path) == hashes(whole)


def test_without_an_intact_checkpoint_all_are_named(
    three_checkpoints: RunDirectory, tiny_config: MakeConfig
) -> None:
    run = three_checkpoints
    (run.checkpoints / "step-5" / "manifest.json").unlink()
    (run.checkpoints / "step-4" / "state.json").write_text("{}")
    os.truncate(run.checkpoints / "step-3" / "adapter_model.safetensors", 100)
    size = (run.checkpoints / "step-5" / "adapter_model.safetensors").stat().st_size
    what = (
        "no checkpoint can be used; step-5: manifest.json is missing; "
        r"step-4: state.json has 2 bytes instead of \d+; "
        f"step-3: adapter_model.safetensors has 100 bytes instead of {size:,}; restore one"
    )
    for work in (lambda: train(tiny_config(), resume=True), lambda: Chat.open(run.path)):
        with pytest.raises(CheckpointError, match=what) as caught:
            work()
        assert caught.value.exit_code == 4


def test_a_chat_tells_of_a_changed_adapter(tiny_config: MakeConfig) -> None:
    run = train(tiny_config()).run
    heard: list[str] = []
    Chat.open(run, announce=heard.append)
    assert heard == []
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    Chat.open(run, announce=heard.append)
    assert heard == [
        "the adapter is not as training left it: adapter_model.safetensors is not what was written"
    ]
    assert train(tiny_config(), resume=True).finished
    assert storage.verify(run / "adapter") is None


@pytest.mark.parametrize("tail", [b'{"step": 6, "los', b"\0\0\0", b"\xff\xfe"])
def test_a_torn_line_of_metrics_does_no_harm(tiny_config: MakeConfig, tail: bytes) -> None:
    run = RunDirectory(train(tiny_config()).run)
    before = curve(run.path)
    with run.metrics_file.open("ab") as file:
        file.write(tail)
    assert curve(run.path) == before
    train(tiny_config(), resume=True)
    assert curve(run.path) == before
    assert run.metrics_file.read_bytes().endswith(b"}\n")
    run.metrics_file.write_bytes(b"nonsense\n" + run.metrics_file.read_bytes())
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:1: the line is damaged; remove it"):
        train(tiny_config(), resume=True)


# Two at once.


def test_a_second_training_is_refused_at_once(tiny_config: MakeConfig) -> None:
    class Second(Monitor):
        def step(self, step: int, loss: float, examples_per_second: float) -> None:
            for how in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(ConfigError, match="another training is writing here"):
                    train(tiny_config(), **how)

    assert train(tiny_config(), monitor=Second()).finished
    assert train(tiny_config(), resume=True).finished


def test_a_checkpoint_that_is_there_is_not_written_again(tiny_config: MakeConfig) -> None:
    run = train(tiny_config()).run
    before = {file: file.stat().st_ino for file in run.rglob("*.safetensors")}
    assert train(tiny_config(), resume=True).finished
    assert train(tiny_config(), resume=True, should_stop=lambda: True).finished
    assert {file: file.stat().st_ino for file in run.rglob("*.safetensors")} == before
    assert len(before) == 3


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
