"""Bases of many kinds: trained, resumed, chatted with and loaded by PEFT, or refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from offbook.errors import ConfigError, ModelError
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.inference.pytorch import TorchEngine
from offbook.libraries import quiet_transformers
from offbook.runs.directory import RunDirectory
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.forecast import forecast
from offbook.training.train import train
from support.families import FAMILIES, make_family
from support.runs import Listener, StopAfter

MakeConfig = Callable[..., Config]
EXPERTS = "experts get no adapter: their gate_up_proj, down_proj are not linear layers ("
RENAMED = "gate_proj, up_proj, down_proj get no adapter: PEFT takes these names for those of the"
SAID = {
    "mixtral": (EXPERTS,),
    "qwen2_moe": (EXPERTS,),
    "qwen3_moe": (EXPERTS,),
    "deepseek_v2": (EXPERTS, RENAMED),
    "deepseek_v3": (EXPERTS, RENAMED),
}
REFUSED = {"gpt2": "a gpt2 model has no linear layers that could have an adapter"}


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - REFUSED.keys()))
def test_what_training_accepts_everything_else_accepts(
    family: str, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_family(family, tmp_path / "base")
    config = tiny_config(
        f"model.base={base}",
        "lora.target_modules=all-linear",
        "train.max_steps=2",
        "train.save_steps=1",
    )
    listener = StopAfter(1)
    assert not train(config, monitor=listener, should_stop=listener.should_stop).finished
    for start in SAID.get(family, ()):
        assert any(line.startswith(start) for line in listener.heard), listener.heard
    assert train(config, resume=True).finished

    run = open_run(config.output_dir)
    model = run.load_model()
    engine = TorchEngine(model, run.template)
    chat = Chat(engine, sampling=Sampling(temperature=0, max_new_tokens=4))
    chat.ask("hello")
    assert len(chat.messages) == 2
    ids = torch.tensor([[1, 2, 3, 4]])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = plain(ids).logits
    with quiet_transformers():
        pefts = PeftModel.from_pretrained(plain, str(run.adapter)).eval()
    assert not torch.equal(pefts(ids).logits, before)
    torch.testing.assert_close(pefts(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", REFUSED)
def test_others_are_refused_before_a_run_exists(
    family: str, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_family(family, tmp_path / "base")
    config = tiny_config(f"model.base={base}", "lora.target_modules=all-linear")
    with pytest.raises(ModelError, match=REFUSED[family]):
        forecast(config, Listener())
    with pytest.raises(ModelError, match=REFUSED[family]):
        train(config)
    assert not RunDirectory(Path(config.output_dir)).adapter.exists()


@pytest.mark.parametrize("family", SAID)
def test_a_plan_names_the_experts_without_an_adapter(
    family: str, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_family(family, tmp_path / "base")
    listener = Listener()
    forecast(tiny_config(f"model.base={base}", "lora.target_modules=all-linear"), listener)
    assert any(line.startswith(EXPERTS) for line in listener.heard)


def test_names_of_experts_are_refused_with_the_reason_and_the_way_out(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_family("mixtral", tmp_path / "base")
    with pytest.raises(ConfigError) as caught:
        train(tiny_config(f"model.base={base}"))
    assert str(caught.value).startswith(
        "lora.target_modules: no linear layer is named gate_proj, up_proj, down_proj; " + EXPERTS
    )
    assert str(caught.value).endswith(
        "the layers are q_proj, k_proj, v_proj, o_proj; or use all-linear"
    )
    way_out = ("lora.target_modules=[q_proj,k_proj,v_proj,o_proj]", "train.max_steps=1")
    assert train(tiny_config(f"model.base={base}", *way_out), overwrite=True).finished


@pytest.mark.parametrize("pattern", ["all-linear", ".*(proj|mqa)", ".*layers.1.*"])
def test_a_pattern_leaves_out_what_peft_would_rename(
    tiny_config: MakeConfig, tmp_path: Path, pattern: str
) -> None:
    base = make_family("deepseek_v3", tmp_path / "base")
    changes = ("train.max_steps=1", "lora.lora_dropout=0")
    train(tiny_config(f"model.base={base}", f"lora.target_modules={pattern}", *changes))
    model = open_run(tmp_path / "run").load_model()
    names = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert names == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
