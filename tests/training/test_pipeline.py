"""A run whose base is divided over devices: the processor, named twice, stands in for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from offbook.errors import ConfigError, MemoryPlanError
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.advice import Case
from offbook.training.memory import Memory
from offbook.training.plan import ModelShape, least_memory, make_plan, plan_for
from offbook.training.train import train

MakeConfig = Callable[..., Config]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TWO = "model.device=cpu,cpu"
TWO_CARDS = "model.device=cuda:0,cuda:1"
GB = 10**9
WIDE = """{
    "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 10, "num_attention_heads": 40, "vocab_size": 32000
}"""
needs_nf4 = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="no bitsandbytes")


@pytest.mark.parametrize(
    "settings",
    [
        ("train.gradient_checkpointing=true",),
        ("train.engine=plain", "lora.use_dora=true"),
        pytest.param(("model.quantization=nf4",), marks=needs_nf4),
    ],
)
def test_two_devices_train_the_same_bits_as_one(
    settings: tuple[str, ...], tiny_config: MakeConfig, tmp_path: Path
) -> None:
    adapters, replies = [], []
    for name, device in ("one", "model.device=cpu"), ("two", TWO):
        result = train(tiny_config(device, *settings, f"output_dir={tmp_path / name}"))
        adapters.append((result.run / "adapter" / "adapter_model.safetensors").read_bytes())
        replies.append(
            Chat.open(result.run, Sampling(temperature=0, max_new_tokens=4)).ask("hello")
        )
    assert adapters[0] == adapters[1]
    assert replies[0] == replies[1]
    run = open_run(tmp_path / "two")
    assert run.devices == (CPU, CPU)
    assert any(module._forward_pre_hooks for module in run.load_model().modules())


def test_a_run_says_what_each_device_gets(tiny_config: MakeConfig) -> None:
    told: list[str] = []
    train(tiny_config(TWO, "train.max_steps=1"), monitor=told.append)
    assert any("GB on cpu (1 layers), " in line and line.count("on cpu") == 2 for line in told)


def test_a_pipeline_is_one_process(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"one each.*train with one process"):
        train(tiny_config(TWO))


@pytest.fixture
def shape(tmp_path: Path) -> ModelShape:
    (tmp_path / "config.json").write_text(WIDE)
    return ModelShape.of(tmp_path, Config().lora)


def case_of(shape: ModelShape, device: torch.device, *settings: str) -> Case:
    config = Config().override("train.batch_size=16", *settings)
    return Case(config, shape, 200, torch.bfloat16, device, Memory(6 * GB, 0))


def test_what_is_too_large_for_one_card_is_planned_for_two(shape: ModelShape) -> None:
    one, two = case_of(shape, CUDA), case_of(shape, CUDA, TWO_CARDS)
    with pytest.raises(MemoryPlanError):
        make_plan(one)
    plan = make_plan(two)
    assert [one.device for one in plan.devices] == ["cuda:0", "cuda:1"]
    assert [one.layers for one in plan.devices] == [5, 5]
    assert plan.peak == max(one.peak for one in plan.devices) < 6 * GB
    assert "GB on cuda:0 (5 layers), " in plan.describe()
    assert least_memory(one.changed(TWO_CARDS)) < least_memory(one)


@pytest.mark.parametrize("nf4", [[], ["model.quantization=nf4"]])
def test_the_parts_of_a_plan_are_the_whole(shape: ModelShape, nf4: list[str]) -> None:
    whole = plan_for(case_of(shape, CUDA, *nf4), 1024, checkpointing=False)
    halves = plan_for(case_of(shape, CUDA, TWO_CARDS, *nf4), 1024, checkpointing=False)
    # What every device needs: buffers, a layer's workspace, a dequantized matrix.
    together = sum(one.peak for one in halves.devices)
    assert whole.peak <= together < 1.15 * whole.peak


def test_a_device_that_is_named_twice_has_half_of_its_memory_for_each() -> None:
    once, twice = Memory.of_each([CPU]), Memory.of_each([CPU, CPU])
    assert twice.available == pytest.approx(once.available / 2, rel=0.1)
