"""A run is opened with all that its users need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import offbook
from offbook.errors import CheckpointError
from offbook.files import storage
from offbook.models.load import choose_device
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train

MakeConfig = Callable[..., Config]


def test_a_finished_run(tiny_config: MakeConfig, tiny_base: Path) -> None:
    path = train(tiny_config("data.system=Be brief.")).run
    run = offbook.open_run(path, pytest.fail)
    assert (run.path, run.adapter, run.checkpoint) == (path, path / "adapter", None)
    assert run.config.data.system == "Be brief."
    assert run.receipt == RunDirectory(path).receipt()
    assert run.base == tiny_base
    assert (run.device, run.dtype) == (choose_device(), torch.float32)
    model = run.load_model()
    assert not model.training
    assert model is not run.load_model()
    ids = torch.tensor([run.template.tokenizer.encode("hello")])
    tuned = model(input_ids=ids).logits
    with model.disable_adapter():
        assert not torch.equal(model(input_ids=ids).logits, tuned)


def test_what_cannot_be_opened_says_so(tiny_config: MakeConfig, tmp_path: Path) -> None:
    path = train(tiny_config(), should_stop=lambda: True).run
    with pytest.raises(CheckpointError, match="the run has no adapter yet; finish it"):
        open_run(path)
    with pytest.raises(CheckpointError, match="not a run directory"):
        open_run(tmp_path / "nowhere")


def test_a_changed_adapter_is_announced(tiny_config: MakeConfig) -> None:
    run = train(tiny_config()).run
    heard: list[str] = []
    open_run(run, heard.append)
    assert heard == []
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    open_run(run, heard.append)
    assert heard == [
        "the adapter is not as training left it: adapter_model.safetensors is not what was written"
    ]
    assert train(tiny_config(), resume=True).finished
    assert storage.verify(run / "adapter") is None
