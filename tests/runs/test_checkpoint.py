"""Checkpoints that are damaged are skipped; the newest intact one is used."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from offbook.errors import CheckpointError
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import StopAfter, hashes

MakeConfig = Callable[..., Config]


@pytest.fixture
def three_checkpoints(tiny_config: MakeConfig) -> RunDirectory:
    """A finished run without its adapter, with three checkpoints."""
    settings = ("train.save_steps=1", "train.save_total_limit=3")
    run = RunDirectory(train(tiny_config(*settings)).run)
    shutil.rmtree(run.adapter)
    return run


def damages(run: RunDirectory) -> Iterator[Callable[[], None]]:
    """Ways to damage the newest checkpoint; each expects it intact."""
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


def test_the_newest_intact_checkpoint_is_found(three_checkpoints: RunDirectory) -> None:
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


def test_resume_takes_the_newest_intact_checkpoint(
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
    for work in (lambda: train(tiny_config(), resume=True), lambda: open_run(run.path)):
        with pytest.raises(CheckpointError, match=what) as caught:
            work()
        assert caught.value.exit_code == 4


def test_an_intact_checkpoint_is_not_written_again(tiny_config: MakeConfig) -> None:
    run = train(tiny_config()).run
    before = {file: file.stat().st_ino for file in run.rglob("*.safetensors")}
    assert train(tiny_config(), resume=True).finished
    assert train(tiny_config(), resume=True, should_stop=lambda: True).finished
    assert {file: file.stat().st_ino for file in run.rglob("*.safetensors")} == before
    assert len(before) == 3 + 2  # the best checkpoint, too
