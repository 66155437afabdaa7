"""Advice about memory comes from the planner, and does what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from offbook.errors import ConfigError, MemoryPlanError
from offbook.models.load import choose_precision
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.training.advice import Advice, Case, advise
from offbook.training.inputs import gather
from offbook.training.memory import Memory
from offbook.training.plan import ModelShape, least_memory, make_plan
from support.runs import Listener

MakeConfig = Callable[..., Config]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AMPLE = Memory(10**15, 10**8)
# The sizes of DeepSeek-LLM 7B and of SmolLM2-135M.
SIZES = {"7b": (4096, 11008, 30, 32, 32, 102400), "135m": (576, 1536, 30, 9, 3, 49152)}
SETTINGS = (
    ["model.precision=float32", "train.gradient_checkpointing=false", "lora.r=64"],
    ["model.precision=float32"],
    ["model.precision=bfloat16", "train.engine=plain", "lora.lora_dropout=0"],
    ["model.precision=bfloat16", "model.quantization=nf4", "lora.r=1"],
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the configurations of bases of these sizes."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "vocab_size")
    folders = {}
    for name, sizes in SIZES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        values = dict(zip(keys, sizes, strict=True)) | {"model_type": "llama"}
        (folders[name] / "config.json").write_text(json.dumps(values))
    return folders


shape_of = cache(ModelShape.of)  # takes half a second


def case_of(
    folder: Path,
    config: Config,
    longest: int,
    device: torch.device = CUDA,
    memory: Memory = AMPLE,
) -> Case:
    dtype = choose_precision(config.model.precision, CPU)
    return Case(config, shape_of(folder, config.lora), longest, dtype, device, memory)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_each_piece_of_advice_saves_what_it_says(
    name: str, settings: list[str], bases: dict[str, Path]
) -> None:
    folder, config = bases[name], Config().override(*settings)
    for device, longest in product((CPU, CUDA), (100, 4000)):
        case = case_of(folder, config, longest, device)
        now = least_memory(case)
        found = advise(case, least_memory)
        assert [a.saves for a in found] == sorted((a.saves for a in found), reverse=True)
        for advice in found:
            changed = config.override(advice.setting)
            limit = changed.data.max_length
            new = case_of(folder, changed, longest if limit == "auto" else limit, device)
            assert advice.saves == now - least_memory(new) > 0


def test_precision_comes_first_for_a_large_base_in_float32(bases: dict[str, Path]) -> None:
    config = Config().override("model.precision=float32", "train.gradient_checkpointing=false")
    case = case_of(bases["7b"], config, 4000)
    found = [a.setting for a in advise(case, least_memory)]
    assert {"model.precision=bfloat16", "model.quantization=nf4"} <= set(found)
    assert "train.gradient_checkpointing=true" in found


@pytest.mark.parametrize("size", [4, 6, 8, 12, 16, 24])
@pytest.mark.parametrize("settings", SETTINGS)
def test_what_fits_together_fits(size: int, settings: list[str], bases: dict[str, Path]) -> None:
    folder, config, memory = bases["7b"], Config().override(*settings), Memory(size * 10**9, 0)
    case = case_of(folder, config, 2000, memory=memory)
    if least_memory(case) <= memory.usable:
        assert make_plan(case)
        return
    with pytest.raises(MemoryPlanError) as caught:
        make_plan(case)
    fix = str(caught.value.fix)
    advised = re.search(r"it fits with ([^(]+) \(", fix)
    assert advised or fix.endswith("choose a smaller base")
    if not advised:
        smaller = case_of(bases["135m"], config.override("lora.r=8"), 100, memory=memory)
        assert make_plan(smaller).peak <= memory.available
    else:
        changed = config.override(*advised[1].split())
        limit = changed.data.max_length
        new = case_of(folder, changed, 2000 if limit == "auto" else limit, memory=memory)
        assert make_plan(new).peak <= memory.available


def test_a_size_is_short() -> None:
    assert str(Advice("lora.r=4", 1_500_000_000)) == "lora.r=4 needs 1.5 GB less"
    assert str(Advice("lora.r=4", 15_000_000)) == "lora.r=4 needs 15 MB less"


def test_automatic_precision_takes_what_fits() -> None:
    if choose_precision("auto", CPU) == torch.bfloat16:
        pytest.skip("bfloat16 is the faster one here")
    config = Config().override("data.train=lighthouse")
    run = gather(config, Monitor(), weights=False, device=CPU, available=10**11)
    assert run.dtype == torch.float32

    def between() -> int:
        """Memory for bfloat16 that float32 does not fit in, beside what this process holds now."""
        memory = Memory.of(CPU, 10**11)
        needs = [
            least_memory(Case(config, run.shape, 200, dtype, CPU, memory))
            for dtype in (torch.bfloat16, torch.float32)
        ]
        return int(sum(needs) / 2 / 0.95)

    heard = Listener()
    run = gather(config, heard, weights=False, device=CPU, available=between())
    assert run.dtype == torch.bfloat16
    assert run.config.model.precision == "bfloat16"
    assert "the base is in bfloat16, since float32 does not fit in memory" in heard.heard
    config = config.override("model.precision=float32")
    with pytest.raises(MemoryPlanError, match=r"model\.precision=bfloat16 needs"):
        gather(config, Monitor(), weights=False, device=CPU, available=between())


def test_a_card_that_is_not_here_needs_its_memory(tiny_config: MakeConfig) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    with pytest.raises(ConfigError, match="no such card here; add --memory"):
        gather(tiny_config(), Monitor(), device=CUDA)
