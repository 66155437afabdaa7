"""Two small runs that were evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.evaluations import write_evaluation
from support.exports import train_run
from support.families import make_family


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `keeper` and `captain`, which differ in rank and rate."""
    folder = tmp_path_factory.mktemp("reported")
    base = make_family("llama", folder / "base")
    settings = ("train.max_steps=12", "train.logging_steps=1", "train.eval_steps=4")
    train_run(folder, base, *settings, f"output_dir={folder / 'keeper'}")
    changed = ("lora.r=4", "train.learning_rate=0.003")
    train_run(folder, base, *settings, *changed, f"output_dir={folder / 'captain'}")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of both runs; the first was evaluated."""
    for name in ("keeper", "captain"):
        shutil.copytree(trained / name, tmp_path / name)
    write_evaluation(tmp_path / "keeper")
    return tmp_path / "keeper", tmp_path / "captain"
