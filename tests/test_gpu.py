"""What only a GPU can show: synchronization, memory, bits, and a run from rows to a reply.

`pytest --device cuda tests/engine` runs the engine's own tests there.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, MistralConfig

from offbook import Chat, train
from offbook.engine.dropout import Masks
from offbook.engine.engine import Engine
from offbook.engine.memory import CUBLAS
from offbook.engine.ops.cuda import Cuda
from offbook.inference.generate import Sampling
from offbook.models.load import checkpoint_layers
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings
from offbook.training.advice import Case
from offbook.training.memory import Memory
from offbook.training.plan import ModelShape, plan_for
from support.engines import example, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

os.environ.setdefault(*CUBLAS)  # before the first product
GPU = torch.device("cuda")
WIDE = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
LORA = LoraSettings(r=8, lora_dropout=0.1)


def wide_engine(**changes: object) -> Engine:
    config = LlamaConfig(**WIDE | changes, bos_token_id=None, eos_token_id=None)
    return Engine(make_model(config, torch.bfloat16, LORA).to(GPU))


def rows(count: int, length: int) -> list:
    return [example(length - k % 7, [range(length // 2, length - 7)], k) for k in range(count)]


def test_the_backend_of_a_gpu_computes_all_layers() -> None:
    engine = wide_engine()
    chosen = set(map(type, engine._replaced.backends()))
    assert Cuda in chosen


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_gpu_within_a_step() -> None:
    engine = wide_engine()
    examples = rows(12, 60)
    engine.accumulate(engine.make_step(examples, 400, GPU), [0])  # compiles
    masks = Masks.draw([0], len(engine.dropouts), GPU)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step = engine.make_step(examples, 400, GPU)
        assert len(step.micro_batches) > 1
        for batch in step.micro_batches:
            engine.loss(batch, masks=masks).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("window", [None, 16])
def test_attention_never_takes_the_slow_kernel(window: int | None) -> None:
    config = MistralConfig(**WIDE, sliding_window=window, bos_token_id=None, eos_token_id=None)
    engine = Engine(make_model(config, torch.bfloat16, LORA).to(GPU), min_shared_tokens=1)
    shared = list(range(40))
    examples = [example(80, [range(60, 80)], k, shared) for k in range(4)]
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(fast):  # raises where none of them can
        assert engine.accumulate(engine.make_step(examples, 10**4, GPU), [0])


@pytest.mark.parametrize(("count", "length"), [(16, 120), (32, 250)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_as_planned(count: int, length: int, checkpointing: bool, tmp_path: Path) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    engine = wide_engine(num_hidden_layers=12)
    if checkpointing:
        checkpoint_layers(engine.model)
    step = engine.make_step(rows(count, length), 10**6, GPU)
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for _ in range(3):
        engine.accumulate(step, [0])
        optimizer.step()
        optimizer.zero_grad()
    used = torch.cuda.max_memory_reserved() - before
    LlamaConfig(**WIDE | {"num_hidden_layers": 12}).save_pretrained(tmp_path)
    case = Case(
        Config(lora=LORA), ModelShape.of(tmp_path, LORA), length, torch.bfloat16, GPU,
        Memory(10**11, 0),
    )  # fmt: skip
    planned = plan_for(case, step.tokens, checkpointing=checkpointing)
    assert used == pytest.approx(planned.peak, rel=0.15)


@pytest.fixture
def settings(tiny_config: Callable[..., Config]) -> Callable[..., Config]:
    """Settings for a run in bfloat16, whose bits are the same each time."""
    same = ("model.precision=bfloat16", "train.deterministic=true", "train.save_steps=2")
    return lambda *overrides: tiny_config(*same, *overrides)


def final_adapter(config: Config) -> bytes:
    return Path(config.output_dir, "adapter", "adapter_model.safetensors").read_bytes()


# transformers and PEFT, in the check at the start: the tiny model's widths are unusual.
@pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_run_trains_resumes_and_chats(
    quantization: str, settings: Callable[..., Config], tmp_path: Path
) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    settings = partial(settings, f"model.quantization={quantization}")
    whole, parts = (settings(f"output_dir={tmp_path / name}") for name in ("whole", "parts"))
    said: list[str] = []
    train(whole, monitor=said.append)
    assert any("on cuda" in line for line in said)
    steps = iter(range(10**6))
    train(parts, should_stop=lambda: next(steps) > 4)
    train(parts, resume=True)
    assert final_adapter(parts) == final_adapter(whole)
    for sampling in (Sampling(temperature=0), Sampling(seed=1, top_p=0.9, top_k=50)):
        chats = [Chat.open(config.output_dir, sampling) for config in (whole, parts)]
        replies = [chat.ask("who are you") for chat in chats]
        assert replies[0] == replies[1] != ""


def test_memory_that_runs_out_halves_micro_batches(
    settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own error, of a process that may take no more than 300 MB."""
    torch.cuda.empty_cache()
    share = 300e6 / torch.cuda.get_device_properties(GPU).total_memory
    monkeypatch.setattr(Engine, "loss", hungry(Engine.loss))
    torch.cuda.set_per_process_memory_fraction(share)
    config = settings("train.batch_size=6", "train.engine=plain")
    try:
        train(config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "micro_batch_tokens" in Path(config.output_dir, "metrics.jsonl").read_text()


def hungry(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Needs 4 MB of memory beside it for each token of a micro-batch."""

    def computed(engine: Engine, batch: object, *others: object) -> torch.Tensor:
        tokens = len(batch.input_ids)  # type: ignore[attr-defined]
        torch.empty(tokens * 2**22, dtype=torch.uint8, device=GPU)
        return loss(engine, batch, *others)

    return computed
