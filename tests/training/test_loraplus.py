"""LoRA+: the matrices B learn at a rate of their own. DoRA: computed by PEFT, and announced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offbook.errors import ConfigError
from offbook.monitor import Monitor, StepMetrics
from offbook.settings.config import Config
from offbook.training.resume import make_optimizer
from offbook.training.setup import prepare
from offbook.training.train import train
from support.runs import Listener, StopAfter, curve, hashes, records_of

MakeConfig = Callable[..., Config]
CONSTANT = ("train.lr_scheduler_type=constant", "train.learning_rate=1e-3")
PLUS = "lora.loraplus_lr_ratio=16"


def matrices(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step}" / "adapter_model.safetensors")


def test_b_and_not_a_learns_at_the_rate_times_the_ratio(tiny_config: MakeConfig) -> None:
    run = train(tiny_config(*CONSTANT, PLUS, "train.save_steps=1", "train.save_total_limit=5")).run
    first, second = matrices(run, 1), matrices(run, 2)
    for name, before in first.items():
        # AdamW's updates are at most about the rate.
        rate = 16e-3 if "lora_B" in name else 1e-3
        change = (second[name] - before).abs().max().item()
        assert 0.5 * rate < change < 1.5 * rate
        if "lora_B" in name:  # it began at 0
            assert before.abs().max().item() == pytest.approx(rate, rel=1e-2)
    assert {record.learning_rate for record in records_of(StepMetrics, run)} == {1e-3}


def test_such_a_run_resumes_to_the_same_bits(tiny_config: MakeConfig, tmp_path: Path) -> None:
    whole = train(tiny_config(PLUS, f"output_dir={tmp_path / 'whole'}")).run
    monitor = StopAfter(2)
    train(tiny_config(PLUS), monitor=monitor, should_stop=monitor.should_stop)
    with pytest.raises(ConfigError, match=r"lora\.loraplus_lr_ratio was 16"):
        train(tiny_config("lora.loraplus_lr_ratio=4"), resume=True)
    run = train(tiny_config(PLUS), resume=True).run
    assert hashes(run) == hashes(whole)
    assert curve(run) == curve(whole)


def test_a_ratio_of_one_is_plain_lora(tiny_config: MakeConfig, tmp_path: Path) -> None:
    plain = train(tiny_config()).run
    one = train(tiny_config("lora.loraplus_lr_ratio=1", f"output_dir={tmp_path / 'one'}")).run
    # The norm of the gradients is a sum in another order.
    for name, tensor in load_file(plain / "adapter" / "adapter_model.safetensors").items():
        other = load_file(one / "adapter" / "adapter_model.safetensors")[name]
        torch.testing.assert_close(other, tensor, rtol=1e-3, atol=1e-5)


def test_all_parameters_are_in_one_group_or_the_other(tiny_config: MakeConfig) -> None:
    for settings in ((), (PLUS,), (PLUS, "lora.use_dora=true")):
        loaded = prepare(tiny_config(*settings), Monitor())
        groups = make_optimizer(loaded).param_groups
        assert len(groups) == 1 + bool(settings)
        grouped = [id(p) for group in groups for p in group["params"]]
        assert sorted(grouped) == sorted(map(id, loaded.trained_parameters()))


def test_dora_is_computed_by_peft_and_says_so(tiny_config: MakeConfig) -> None:
    heard = Listener()
    assert train(tiny_config("lora.use_dora=true"), monitor=heard).finished
    assert [text for text in heard.heard if text.startswith("left to transformers and PEFT: ")]
