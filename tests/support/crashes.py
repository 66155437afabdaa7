"""Runs as a kill leaves them, and what becomes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from offbook.files import storage
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train
from support.disks import Snapshots
from support.runs import Listener, curve, hashes


def kill_points(config: Config, copies: Path, **how: bool) -> list[Path]:
    """Copies of a run directory as a kill before, within or after each disk operation leaves it."""
    disk = Snapshots(Path(config.output_dir), copies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "disk", disk)
        train(config, **how)
    disk.take()
    return disk.taken


def survive(config: Config, moments: list[Path], whole: Path) -> None:
    """From each of these moments, a run that is resumed ends as the whole one."""
    run = Path(config.output_dir)
    for moment in moments:
        shutil.rmtree(run)
        shutil.copytree(moment, run)
        committed = newest(RunDirectory(run), lambda text: None)
        heard = Listener()
        if (run / "config.yaml").exists():
            assert train(config, resume=True, monitor=heard).finished
            step = committed.name.removeprefix("step-") if committed else "0"
            ended = f"the run has finished already, in step {step};"
            resumed = f"resuming after step {step}"
            assert any(text == resumed or text.startswith(ended) for text in heard.heard)
        else:
            assert train(config).finished
        assert hashes(run) == hashes(whole)
        assert curve(run) == curve(whole)
        assert not list(run.rglob(".*.partial"))
