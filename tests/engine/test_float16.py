"""Training in float16: gradients too small or too large for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offbook.engine.check import check_gradients
from offbook.engine.engine import LOSS_SCALE, Engine
from offbook.settings.config import Config
from offbook.training import step as step_module
from offbook.training.train import train
from support.engines import FAMILIES, make_model, some_examples
from support.runs import Listener, hashes, stop_after

CPU = torch.device("cpu")


def gradients(dtype: torch.dtype, scale: float) -> torch.Tensor:
    """Of a step as of many more tokens, in which each has a small share of the loss."""
    engine = Engine(make_model(FAMILIES["qwen3"], dtype))
    step = replace(engine.make_step(some_examples(), 10**6, CPU), supervised=100_000)
    assert engine.accumulate(step, [0], scale=scale) is not None
    found = [p.grad for p in engine.model.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten() for gradient in found])


def test_small_gradients_are_not_lost() -> None:
    expected = gradients(torch.float32, 1)
    scaled, plain = (gradients(torch.float16, scale) for scale in (LOSS_SCALE, 1))
    assert (scaled - expected).norm() < 0.01 * expected.norm()
    assert (plain - expected).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize("family", ["llama-mha", "qwen3"])
def test_the_check_passes(family: str) -> None:
    engine = Engine(make_model(FAMILIES[family], torch.float16))
    assert engine.packed
    assert check_gradients(engine, some_examples(), CPU) < 0.05


def test_the_scale_falls_until_gradients_fit(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is remembered: a run that was stopped goes on as if it had not been."""
    monkeypatch.setattr(step_module, "LOSS_SCALE", 2.0**24)
    settings = ("model.precision=float16", "train.max_steps=4", "train.save_steps=2")
    heard = Listener()
    whole = train(tiny_config(*settings), monitor=heard).run
    told = [line for line in heard.heard if "did not fit in float16" in line]
    assert told[0] == (
        "step 1: gradients did not fit in float16; the loss is scaled by 8,388,608 now"
    )
    state = json.loads((whole / "checkpoints/step-4/state.json").read_text())
    assert state["halvings"] == len(told)

    other = tiny_config(*settings, f"output_dir={tmp_path}/other")
    assert not train(other, should_stop=stop_after(2)).finished
    assert hashes(train(other, resume=True).run) == hashes(whole)
