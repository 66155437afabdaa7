"""Where the time of a training step goes, and how fast it could be at the most.

    python benchmarks/profile_step.py [--rows FILE] [--base smollm2-135m] [--dropout 0.1]
        [--persona TOKENS] [--tries 5] [--precision auto] [--kernels native] [--markdown FILE]

The fastest of some steps of 16 rows, in microseconds a token and layer. Last comes the time that
the step's products would take at the speed of PyTorch's large square one, in the same process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import LORA, STEP
from machine import DEVICE, add_options, describe_machine, gemm_speed, now, set_kernels
from torch.profiler import ProfilerActivity, profile, record_function
from train_speed import build_rows, count_flops

from offbook.engine.engine import Engine
from offbook.engine.memory import prepare_allocator
from offbook.engine.ops import kernels
from offbook.models.adapter import attach_adapter
from offbook.models.base import resolve_base
from offbook.models.load import choose_precision, load_base
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import Example
from offbook.training.plan import MOST_TOKENS

# Parts of a step, and the autograd functions that compute them.
PARTS = {
    "linear layers, adapters and the gate": ("_Project", "_Gate"),
    "attention": ("_Attend", "AttendInBlocks"),
    "output head and loss": ("_CrossEntropy",),
    "norms": ("_Norm",),
    "rotary positions": ("_Rotate",),
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")


def labelled(multiply: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A name for the profile, which does not see into compiled kernels."""

    def named(*arguments: Any) -> torch.Tensor:
        with record_function("multiply"):
            return multiply(*arguments)

    return named


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="lighthouse", help="a file or a sample role")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--persona", type=int, default=0)
    parser.add_argument("--tries", type=int, default=5)
    add_options(parser)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()

    set_kernels(options.kernels)
    dtype = choose_precision(options.precision, DEVICE)
    folder = resolve_base(options.base)
    rows = build_rows(options.rows, folder, STEP, options.persona)
    prepare_allocator(DEVICE)
    base = load_base(folder, dtype, DEVICE)
    engine = Engine(attach_adapter(base, LoraSettings(lora_dropout=options.dropout, **LORA), 0, ""))
    examples = [
        Example(np.array(row["input_ids"], np.int32), np.array(row["labels"], np.int32))
        for row in rows
    ]
    step = engine.make_step(examples, MOST_TOKENS.on(DEVICE), DEVICE)
    taken = []
    kernels.multiply = labelled(kernels.multiply)
    for _ in range(options.tries + 2):  # the first two warm up
        speed = gemm_speed(dtype)
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            start = now()
            engine.accumulate(step, [0])
            taken.append((now() - start, speed, trace))
        engine.model.zero_grad()
    seconds, speed, trace = min(taken[2:], key=lambda one: one[0])

    layers = base.config.num_hidden_layers
    unit = 1e6 / (step.tokens * layers)  # from seconds to microseconds a token and layer
    events = trace.key_averages()

    def total(names: tuple[str, ...]) -> float:
        keys = (*names, *(f"{name}Backward" for name in names))
        return sum(event.cpu_time_total for event in events if event.key in keys) / 1e6

    parts = {part: total(names) for part, names in PARTS.items()}
    own = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS) / 1e6
    products = total(("multiply",)) or own
    flops = count_flops(folder, step.tokens, step.supervised)
    lines = [
        "| | µs a token and layer | share |",
        "|---|--:|--:|",
        *(f"| {part} | {t * unit:.1f} | {t / seconds:.0%} |" for part, t in parts.items()),
        f"| the rest | {(seconds - sum(parts.values())) * unit:.1f} "
        f"| {1 - sum(parts.values()) / seconds:.0%} |",
        f"| **whole step** | {seconds * unit:.1f} | 100% |",
        f"| of it, wide products | {products * unit:.1f} | {products / seconds:.0%} |",
        f"| all arithmetic at PyTorch's {speed / 1e9:.0f} GFLOP/s | {flops / speed * unit:.1f} "
        f"| {flops / speed / seconds:.0%} |",
    ]
    report = "\n".join(lines) + (
        f"\n\n{step.tokens} tokens computed, {step.supervised} supervised, "
        f"in {len(step.micro_batches)} micro-batches and a prefix of "
        f"{step.micro_batches[0].offset}; {seconds:.2f} s. "
        f"{describe_machine(dtype)}.\n"
    )
    print(report)
    if options.markdown:
        options.markdown.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
