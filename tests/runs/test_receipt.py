"""A run recognizes its base, whatever folder it is in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from offbook.errors import CheckpointError, ModelError
from offbook.runs.receipt import fingerprint
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import stop_after
from support.tiny import DEEPSEEK_TEMPLATE


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def run(base: Path, tiny_config: Callable[..., Config]) -> Path:
    return train(tiny_config(f"model.base={base}", "train.max_steps=1")).run


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def other_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    save_file({name: w + 0.01 for name, w in weights.items()}, base / "model.safetensors")


CHANGES: dict[str, Callable[[Path], object]] = {
    "config.json": lambda base: edit(base / "config.json", rms_norm_eps=1e-5),
    "tokenizer.json": lambda base: append(base / "tokenizer.json", "\n"),
    "chat template": lambda base: (base / "chat_template.jinja").write_text(
        DEEPSEEK_TEMPLATE.replace("User: ", "Guest: ")
    ),
    "weights": other_weights,
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_base_is_refused_with_the_part(run: Path, base: Path, part: str) -> None:
    open_run(run)
    CHANGES[part](base)
    with pytest.raises(CheckpointError) as caught:
        open_run(run)
    assert str(caught.value) == (
        f"{run}: the base is not the one the run was started with: other {part}; say where it is "
        f"now: `offbook chat {run} --base PATH`"
    )


def test_a_resumed_run_with_other_weights_is_refused(
    base: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(f"model.base={base}", "train.save_steps=1")
    train(config, should_stop=stop_after(6))
    other_weights(base)
    with pytest.raises(CheckpointError, match="started with: other weights;"):
        train(config, resume=True)


def test_a_hash_that_an_older_receipt_lacks_is_not_compared(run: Path, base: Path) -> None:
    receipt = json.loads((run / "receipt.json").read_text())
    del receipt["base"]["weights"]
    (run / "receipt.json").write_text(json.dumps(receipt))
    other_weights(base)
    open_run(run)


def test_a_base_without_weights_is_refused_in_a_line(base: Path) -> None:
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors weights; use a revision"):
        fingerprint(base)
    save_file({}, base / "model.safetensors")
    assert len(fingerprint(base)) == 64  # it is no base's


def test_the_fingerprint_is_of_the_tensors_not_of_the_files(base: Path, tmp_path: Path) -> None:
    before = fingerprint(base)
    parts = tmp_path / "parts"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.save_pretrained(parts, max_shard_size="10KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    assert fingerprint(parts) == before
    other_weights(base)
    assert fingerprint(base) != before
