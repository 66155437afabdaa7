"""Bases in 4 bits: trained, and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from offbook.engine.check import check_gradients
from offbook.engine.projection import Projection
from offbook.errors import ConfigError
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.models import load as model_module
from offbook.models.load import load_base
from offbook.monitor import Monitor
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.setup import prepare
from offbook.training.train import train

CPU = torch.device("cpu")
MakeConfig = Callable[..., Config]
NF4 = ("model.quantization=nf4", "model.precision=bfloat16")


def test_linear_layers_are_in_4_bits_and_the_rest_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    base = load_base(tmp_path, torch.bfloat16, CPU, "nf4")
    dense = load_base(tmp_path, torch.bfloat16, CPU)
    layer, exact = (m.model.layers[0].self_attn.q_proj for m in (base, dense))
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == exact.weight.numel() // 2
    assert type(base.lm_head) is nn.Linear
    parts = Projection.of(layer)
    assert parts is not None
    error = (parts.weight() - exact.weight).norm() / exact.weight.norm()
    assert 0 < error < 0.15


def test_the_fast_path_supports_4_bit_layers(tiny_config: MakeConfig) -> None:
    exact = "model.precision=float32"
    run = prepare(tiny_config(*NF4, exact, "lora.lora_dropout=0"), Monitor())
    assert run.engine.packed
    assert run.engine.plain_layers == ()
    assert 0 < check_gradients(run.engine, list(run.inputs.training), CPU) < 1e-4


def test_a_4_bit_run_is_trained_and_loaded_again(tiny_config: MakeConfig) -> None:
    config = tiny_config(*NF4, "train.max_steps=30", "data.validation=0.3", "lora.lora_dropout=0")
    result = train(config)
    assert result.eval_loss is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss < result.eval_loss_before
    chat = Chat.open(result.run, sampling=Sampling(max_new_tokens=3, temperature=0))
    assert isinstance(chat.ask("hello"), str)
    model = open_run(result.run).load_model()
    weight = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert weight.dtype == torch.uint8


def test_a_base_stored_in_4_bits_computes_in_the_format_of_the_run(
    tiny_base: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    """As the hub has them: the state of the weights, and the other weights, are in float16."""
    stored = tmp_path / "stored"
    load_base(tiny_base, torch.float16, CPU, "nf4").save_pretrained(stored)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (stored / name).write_bytes((tiny_base / name).read_bytes())
    config = tiny_config(f"model.base={stored}", "lora.lora_dropout=0")
    run = prepare(config, Monitor())
    rest = {p.dtype for p in run.model.parameters() if p.is_floating_point()}
    assert rest == {torch.float32}
    assert run.engine.plain_layers == ()
    assert 0 < check_gradients(run.engine, list(run.inputs.training), CPU) < 1e-4
    dense = prepare(config.override(f"model.base={tiny_base}"), Monitor())
    assert run.inputs.plan.weights < dense.inputs.plan.weights


def test_without_bitsandbytes_the_error_says_what_to_install(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'offbook\[nf4\]'"):
        load_base(tiny_base, torch.bfloat16, CPU, "nf4")
