"""Memory and time, predicted."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offbook.engine.layers import saved_per_token
from offbook.engine.ops import choose
from offbook.engine.ops.cpu import Cpu
from offbook.engine.ops.library import library
from offbook.engine.ops.torch import Torch
from offbook.errors import MemoryPlanError
from offbook.models.adapter import attach_adapter
from offbook.models.load import base_of, head, load_base
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.training import plan as planner
from offbook.training.advice import Case
from offbook.training.forecast import forecast
from offbook.training.memory import Memory
from offbook.training.plan import ModelShape, make_plan

CPU = torch.device("cpu")
MakeConfig = Callable[..., Config]
GB = 10**9
# PyTorch's and oneDNN's operations as on a processor without AVX-512.
AVX2_ALONE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# SmolLM2-135M's sizes, without its weights.
SMALL = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


@pytest.fixture
def shape(tmp_path: Path) -> ModelShape:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return ModelShape.of(tmp_path, Config().lora)


def case_of(shape: ModelShape, free: float, longest: int = 200, *settings: str) -> Case:
    """A run on a CPU; of the `free` bytes, the process uses half a gigabyte already."""
    memory = Memory(int(free), GB // 2)
    return Case(Config().override(*settings), shape, longest, torch.bfloat16, CPU, memory)


# Without kernels, PyTorch needs so much more.
MORE = 0 if library().code else planner.BUFFERS
needs_kernels = pytest.mark.skipif(
    library().code is None, reason=f"no kernels: {library().problem}"
)


def test_the_shape_is_that_of_the_loaded_model(tiny_base: Path) -> None:
    lora = Config().lora
    shape = ModelShape.of(tiny_base, lora)
    base = load_base(tiny_base, torch.float32, CPU)
    assert shape.parameters == sum(p.numel() for p in base.parameters())
    assert shape.head == sum(p.numel() for p in head(base).parameters())
    linear = [m for m in base.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.linear == sum(m.weight.numel() for m in linear) - shape.head
    model = attach_adapter(base, lora, 0, "tiny")
    assert base_of(model) is base
    assert shape.adapter == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_shapes_are_known_without_weights(shape: ModelShape) -> None:
    assert shape.parameters == 134_515_008  # the model card's 135M
    assert shape.linear == 106_168_320
    assert shape.flops(10, 4) == 10 * (4 * 106_168_320 + 6 * shape.adapter) + 4 * 4 * 576 * 49152


def test_less_memory_means_smaller_micro_batches_then_checkpointing(
    shape: ModelShape,
) -> None:
    chosen = []
    for size in (30 * GB, 1.5 * GB, 1.2 * GB, GB):
        plan = make_plan(case_of(shape, size + MORE))
        assert plan.peak <= size + MORE
        chosen.append((plan.checkpointing, plan.micro_batch_tokens))
    assert chosen[0] == (False, 2048)
    assert chosen == sorted(chosen, key=lambda choice: (choice[0], -choice[1]))
    assert chosen[-1][0], "the smallest needs checkpointing"
    assert len(set(chosen)) == 4


def test_a_gpu_recomputes_rather_than_launch_small_micro_batches(shape: ModelShape) -> None:
    """On a processor, small ones cost little."""
    case = replace(case_of(shape, 0), device=torch.device("cuda"), memory=Memory(0, 0))

    def chosen(tokens: int) -> tuple[bool, int]:
        """With memory for micro-batches of so many tokens, nothing recomputed."""
        peak = planner.plan_for(case, tokens, checkpointing=False).peak
        plan = make_plan(replace(case, memory=Memory(int(peak / 0.94), 0)))
        return plan.checkpointing, plan.micro_batch_tokens

    assert chosen(3200) == (False, 3200)
    assert chosen(1600) == (False, 1600)
    assert chosen(800) == (True, 3200)


@needs_kernels
def test_what_does_not_fit_is_refused_with_numbers(shape: ModelShape) -> None:
    with pytest.raises(
        MemoryPlanError,
        match=r"needs 0\.9 GB at the least: 0\.3 GB of weights, .* 0\.8 GB are free",
    ) as caught:
        make_plan(case_of(shape, 0.8 * GB))
    assert caught.value.exit_code == 7


def test_a_long_example_is_never_cut(shape: ModelShape) -> None:
    plan = make_plan(case_of(shape, 30 * GB, 3000))
    assert plan.micro_batch_tokens == 3000


@pytest.mark.parametrize("setting", [True, False])
def test_checkpointing_can_be_set(shape: ModelShape, setting: bool) -> None:
    checkpointing = f"train.gradient_checkpointing={str(setting).lower()}"
    plan = make_plan(case_of(shape, 30 * GB, 200, checkpointing))
    assert plan.checkpointing is setting


def test_a_resumed_run_keeps_its_micro_batches_where_they_fit(shape: ModelShape) -> None:
    plan = make_plan(case_of(shape, 30 * GB), preferred=300)
    assert plan.micro_batch_tokens == 300
    # Too little memory without checkpointing, or with larger ones.
    plan = make_plan(case_of(shape, 1.3 * GB + MORE), preferred=1024)
    assert (plan.micro_batch_tokens, plan.checkpointing) == (1024, True)


def test_every_size_down_to_the_longest_row_is_tried() -> None:
    assert planner._sizes(1024, 600) == [1024, 600]
    assert planner._sizes(1024, 100) == [1024, 512, 256]
    assert planner._sizes(1024, 5000) == [5000]


def test_longer_sequences_never_need_less(shape: ModelShape) -> None:
    needs = [
        saved_per_token(Torch(), shape.config, n, dropout=True) for n in (50, 400, 500, 1025, 2000)
    ]
    assert needs == sorted(needs)


def test_the_backend_is_that_of_the_layers(shape: ModelShape) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        assert shape.backend(dtype, CPU) is choose(CPU, dtype, [576, 64, 1536])


def test_kernels_save_no_masks_probabilities_or_gated_inputs(shape: ModelShape) -> None:
    fused, plain = (
        {d: saved_per_token(ops, shape.config, 200, dropout=d) for d in (False, True)}
        for ops in (Cpu(), Torch())
    )
    assert fused[True] == fused[False]
    assert plain[False] == fused[False] + 9 * 200 + 1536
    # Masks of a byte for the inputs of q, k, v, gate and up, of o, and of down.
    assert plain[True] == plain[False] + (5 * 576 + 576 + 1536) // 4


def test_a_forecast_counts_the_steps_of_the_run(tiny_config: MakeConfig) -> None:
    config = tiny_config("train.batch_size=3", "data.validation=0")
    result = forecast(config, Monitor())
    assert result.steps == 5
    assert result.trained == result.plan.adapter // 16
    assert 0 < result.step_seconds < 10
    assert result.step_seconds == pytest.approx(result.step_flops / result.flops_per_second)


# OFFBOOK_TEST_FULL=1 measures the others, too.
MEASURED: list[tuple[str, int, list[str]]] = [
    ("native", 1024, ["lora.lora_dropout=0", "lora.r=64"]),
    ("native", 2048, ["train.batch_size=32", "train.gradient_checkpointing=true"]),
    ("x86-64-v3", 1024, ["lora.lora_dropout=0.1"]),
    ("none", 1024, ["lora.lora_dropout=0.1"]),
]
OTHERS: list[tuple[str, int, list[str]]] = [
    ("native", 1024, ["lora.lora_dropout=0.1"]),
    ("native", 256, ["train.gradient_checkpointing=false"]),
    ("native", 2048, ["train.batch_size=32", "data.train=teahouse-zh"]),
    ("x86-64-v3", 2048, ["train.batch_size=32", "train.gradient_checkpointing=true"]),
    ("none", 2048, ["train.batch_size=32", "train.gradient_checkpointing=true"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernels", "tokens", "settings"),
    MEASURED + (OTHERS if os.environ.get("OFFBOOK_TEST_FULL") else []),
)
def test_peak_memory_is_as_predicted(kernels: str, tokens: int, settings: list[str]) -> None:
    if kernels == "x86-64-v3" and platform.machine() != "x86_64":
        pytest.skip("x86-64 only")
    script = Path(__file__).parents[2] / "benchmarks" / "full_size.py"
    command = [sys.executable, script, "--tokens", tokens, "--steps", 2, "--kernels", kernels]

    def measure() -> tuple[float, float]:
        done = subprocess.run(
            [*map(str, command), "--memory-only", "--json", "--set", *settings],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | (AVX2_ALONE if kernels == "x86-64-v3" else {}),
        )
        facts = json.loads(done.stdout.splitlines()[-1])
        return facts["peak_gb"], facts["predicted_gb"]

    peak, predicted = measure()
    if peak > 1.15 * predicted:  # equal runs differ by 8%, by when malloc gives memory back
        peak = min(peak, measure()[0])
    assert peak == pytest.approx(predicted, rel=0.15)
