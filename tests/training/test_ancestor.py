"""`train.init_adapter`: a run that goes on from an adapter, and says from which."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError
from offbook.files.storage import sha256
from offbook.monitor import Monitor
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.inputs import gather
from offbook.training.train import train
from support.runs import Listener

SIZES = ("lora.r=4", "lora.lora_alpha=8", "train.max_steps=2")


def open_rows(run: RunDirectory) -> tuple[set[str], set[str]]:
    """The places of the rows that a run is trained on, and of those that it holds out."""
    inputs = gather(run.config(), Monitor())
    training, held_out = (
        {part[k].source.rpartition(":")[2] for k in range(len(part))}
        for part in (inputs.training, inputs.validation)
    )
    return training, held_out


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


def test_held_out_rows_that_the_adapter_was_trained_on_are_told(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    rows = [json.dumps({"instruction": f"row {n}", "output": f"{n} seven"}) for n in range(40)]
    few, more, new = (tmp_path / f"{name}.jsonl" for name in ("few", "more", "new"))
    few.write_text("\n".join(rows[:20]), encoding="utf-8")
    more.write_text("\n".join(rows[:30]), encoding="utf-8")
    new.write_text("\n".join(rows[30:]), encoding="utf-8")

    def told(data: Path, *settings: str) -> list[str]:
        heard = Listener()
        config = tiny_config(*SIZES, f"data.train={data}", *settings)
        train(config, monitor=heard, overwrite=True)
        return [text for text in heard.heard if "the adapter to go on from was trained" in text]

    first = f"output_dir={tmp_path / 'first'}"
    assert told(few, first) == []
    goes_on = f"train.init_adapter={tmp_path / 'first'}"
    assert told(few, goes_on) == [], "the same rows are held out"
    (said,) = told(more, goes_on)
    reads = [open_rows(RunDirectory(tmp_path / name)) for name in ("first", "run")]
    known = reads[0][0] & reads[1][1]
    assert 0 < len(known) < len(reads[1][1]) == 6
    assert f"the prompts of {len(known)} of 6 held-out examples" in said
    advised = f"data.validation={new}"
    assert said.endswith("set data.validation to a file of new rows")
    assert told(more, goes_on, advised) == []
    few.unlink()
    assert told(more, goes_on) == [], "it cannot be known any more"


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
