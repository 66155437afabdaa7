"""A base over several devices: which part is where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig

from offbook.errors import ConfigError
from offbook.models.load import backbone, choose_devices, head, load_base
from offbook.models.pipeline import layers_by_device
from offbook.settings.config import Config

CPU = torch.device("cpu")
SEVEN_B = LlamaConfig(vocab_size=102_400, hidden_size=4096, num_hidden_layers=30)
LINEAR = 30 * 202_375_168  # parameters of its linear layers


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("bytes_of_a_weight", [1, 4.127 / 16])
@pytest.mark.parametrize("tied", [False, True])
def test_devices_hold_about_as_many_bytes(
    devices: int, bytes_of_a_weight: float, tied: bool
) -> None:
    config = LlamaConfig(**SEVEN_B.to_dict() | {"tie_word_embeddings": tied})
    linear = LINEAR * bytes_of_a_weight
    found = layers_by_device(config, linear, devices)
    assert [k for own in found for k in own] == list(range(30))
    layer, embedding = linear / 30, 102_400 * 4096
    held = [len(own) * layer for own in found]
    held[0] += embedding
    held[-1] += 0 if tied else embedding
    assert max(held) <= max(sum(held) / devices, embedding) + layer


def test_parts_are_moved_and_logits_come_back(tiny_base: Path) -> None:
    whole = load_base(tiny_base, torch.float32, CPU)
    base = load_base(tiny_base, torch.float32, CPU, others=[CPU])
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(base(ids).logits, whole(ids).logits)
    hooked = [m for m in base.modules() if m._forward_pre_hooks]
    assert hooked == [*backbone(base).layers, backbone(base).norm, head(base)]


def test_bases_that_cannot_be_divided_are_loaded_as_advised(
    tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"9 devices for 2 layers.*name fewer devices"):
        load_base(tiny_base, torch.float32, CPU, others=[CPU] * 8)
    load_base(tiny_base, torch.float32, CPU, others=[CPU])
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"layers of a gpt_neox model cannot.*leave it at auto"):
        load_base(tmp_path, torch.float32, CPU, others=[CPU])
    load_base(tmp_path, torch.float32, *choose_devices("cpu"))


def test_several_devices_are_named_in_one_setting() -> None:
    assert Config().override("model.device=cpu,cpu").model.device == "cpu,cpu"
    assert choose_devices("cpu,cpu") == (CPU, CPU)
    assert Config().override("model.device=cuda:0,cuda:1").model.device == "cuda:0,cuda:1"
    with pytest.raises(ConfigError, match=r"model.device=cuda:98: PyTorch has"):
        choose_devices("cuda:98,cuda:99")


@pytest.mark.parametrize("setting", ["cuda,cuda:1", "cuda:0,cpu", "auto,cpu", "cpu,", "mps,mps"])
def test_what_are_no_several_devices_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="or several: cuda:0,cuda:1"):
        Config().override(f"model.device={setting}")
