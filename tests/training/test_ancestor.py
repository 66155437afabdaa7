"""`train.init_adapter`: a run that goes on from an adapter, and says from which."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError
from offbook.files.storage import sha256
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.train import train

SIZES = ("lora.r=4", "lora.lora_alpha=8", "train.max_steps=2")


def test_a_run_goes_on_from_another(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "second", "third")]
    first = train(tiny_config(*SIZES, f"output_dir={runs[0]}"))
    goes_on = [f"train.init_adapter={runs[0]}", f"output_dir={runs[1]}"]
    for wrong, advice in (
        (("lora.r=8", "lora.lora_alpha=8"), r"set lora\.r=4 lora\.lora_alpha=8"),
        (("lora.r=4", "lora.lora_alpha=4"), r"set lora\.lora_alpha=8"),
        (
            (*SIZES[:2], f"train.init_adapter={tmp_path}"),
            "give a run, or a folder with ",
        ),
    ):
        with pytest.raises(ConfigError, match=advice):
            train(tiny_config(*goes_on, *wrong))
    second = train(tiny_config(*SIZES, *goes_on))
    assert second.eval_loss_before == pytest.approx(first.eval_loss, rel=1e-5)
    (ancestor,) = RunDirectory(runs[1]).receipt().ancestry
    assert ancestor.name == "first"
    assert ancestor.weights == sha256(runs[0] / "adapter" / "adapter_model.safetensors")
    assert ancestor.data == RunDirectory(runs[0]).receipt().data

    # From a folder; then resumed, when that adapter is gone.
    folder = runs[1] / "adapter"
    third = tiny_config(*SIZES, f"train.init_adapter={folder}", f"output_dir={runs[2]}")
    third = third.override("train.max_steps=6")
    assert not train(third, share=0.5).finished
    assert len(RunDirectory(runs[2]).receipt().ancestry) == 1
    stopped = third.override(f"output_dir={tmp_path / 'fourth'}")
    assert train(stopped, should_stop=lambda: True).steps == 0
    folder.rename(tmp_path / "gone")
    assert train(Config.load(runs[2] / "config.yaml"), resume=True).finished

    # Before the first checkpoint, it is needed, and known by its hash.
    shutil.copytree(runs[0] / "adapter", folder)
    again = Config.load(tmp_path / "fourth" / "config.yaml")
    with pytest.raises(CheckpointError, match="the adapter has changed; restore it, or say where"):
        train(again, resume=True)
    again = again.override(f"train.init_adapter={tmp_path / 'gone'}")
    assert train(again, resume=True).finished


def test_an_adapter_of_another_base_is_refused(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "first"
    train(tiny_config(*SIZES, f"output_dir={run}"))
    receipt = (run / "receipt.json").read_text()
    weights = RunDirectory(run).receipt().base["weights"]
    (run / "receipt.json").write_text(receipt.replace(weights, "0" * 64))
    config = tiny_config(*SIZES, f"train.init_adapter={run}", f"output_dir={tmp_path / 'second'}")
    with pytest.raises(CheckpointError, match=r"another base: other weights; set model\.base"):
        train(config)
    (run / "receipt.json").write_text(receipt)
    assert train(config).finished
