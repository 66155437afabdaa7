"""A run directory that version 0.1 wrote is opened, chatted with and resumed.

`written_by_0_1/` has a tiny base, seven rows, a run that was stopped after step 4 of 5, and the
adapter to which the same version resumed it. FOLDER in its config.yaml stands for the path.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.monitor import EvalMetrics, StepMetrics
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import Listener, records_of

WRITTEN = Path(__file__).parent / "written_by_0_1"
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    folder = Path(shutil.copytree(WRITTEN, tmp_path / "role"))
    config = folder / "run" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("FOLDER", folder.as_posix()), encoding="utf-8")
    return folder / "run"


def test_it_is_opened_and_answers(run: Path) -> None:
    heard: list[str] = []
    opened = open_run(run, heard.append)
    assert heard == ["the run is not finished; this is step-4"]
    assert (opened.adapter, opened.checkpoint) == (run / "checkpoints" / "step-4", 4)
    assert opened.receipt.rows is not None
    assert opened.receipt.rows.training == 5
    assert opened.receipt.device is not None
    assert opened.receipt.versions["offbook"] == "0.1.0"
    assert Chat.open(run, Sampling(temperature=0, max_new_tokens=8)).ask("hello")


def test_its_receipt_is_written_as_it_was(run: Path) -> None:
    directory = RunDirectory(run)
    assert directory.receipt().to_json() == directory.receipt_file.read_bytes()


def test_it_is_resumed(run: Path) -> None:
    """Its last step gets other dropout masks than version 0.1 drew."""
    monitor = Listener()
    before = (run / "metrics.jsonl").read_bytes()
    result = train(Config.load(run / "config.yaml"), resume=True, monitor=monitor)
    assert result.finished
    assert "resuming after step 4" in monitor.heard
    expected = load_file(WRITTEN / "finished" / ADAPTER)
    start = load_file(WRITTEN / "run" / "checkpoints" / "step-4" / "adapter_model.safetensors")
    got = load_file(run / ADAPTER)
    # The last step moves a weight by up to 2e-3.
    assert max((start[name] - got[name]).abs().max().item() for name in start) > 1e-3
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=4e-3)
    assert (run / "metrics.jsonl").read_bytes().startswith(before)
    assert [record.step for record in records_of(StepMetrics, run)] == [1, 2, 3, 4, 5]
    assert [record.step for record in records_of(EvalMetrics, run)] == [0, 2, 4, 5]
