"""How much of its speed a training step keeps while other programs keep cores busy; or replies.

    python benchmarks/busy_core.py [--replies] [--busy 1] [--rounds 8] [--rows FILE]
        [--base smollm2-135m] [--precision auto] [--kernels native] [--markdown FILE]

The same step of 16 rows, or 60 tokens of 16 replies written together by PyTorch's operations, by
turns on the machine as it is and with programs that do nothing but count, of the same priority. A
program that shares cores fairly keeps cores / (cores + busy) of its speed where the system moves
programs between cores, and 1 - busy / (2 cores) where it leaves them.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from contestants import LORA, STEP
from machine import DEVICE, add_options, describe_machine, now, set_kernels
from train_speed import build_rows

from offbook.engine.engine import Engine
from offbook.engine.memory import prepare_allocator
from offbook.inference.batch import greedy_replies
from offbook.models.adapter import attach_adapter
from offbook.models.base import resolve_base
from offbook.models.load import choose_precision, load_base
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import IGNORED, Example
from offbook.training.plan import MOST_TOKENS

REPLY_TOKENS = 60


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Other programs that keep so many cores busy."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.send_signal(signal.SIGKILL)
            program.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replies", action="store_true")
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rows", default="lighthouse", help="a file or a sample role")
    parser.add_argument("--base", default="smollm2-135m")
    add_options(parser)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()

    set_kernels(options.kernels)
    dtype = choose_precision(options.precision, DEVICE)
    folder = resolve_base(options.base)
    rows = build_rows(options.rows, folder, STEP, 0)
    prepare_allocator(DEVICE)
    base = load_base(folder, dtype, DEVICE)
    engine = Engine(attach_adapter(base, LoraSettings(lora_dropout=0.1, **LORA), 0, ""))
    optimizer = torch.optim.AdamW(
        [p for p in engine.model.parameters() if p.requires_grad], lr=1e-4, fused=True
    )
    examples = [
        Example(np.array(row["input_ids"], np.int32), np.array(row["labels"], np.int32))
        for row in rows
    ]
    step = engine.make_step(examples, MOST_TOKENS.on(DEVICE), DEVICE)

    def train() -> None:
        engine.accumulate(step, [0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def reply() -> None:
        prompts = [row["input_ids"][: row["labels"].count(IGNORED)] for row in rows]
        with engine.plain():
            greedy_replies(engine.model.eval(), prompts, set(), REPLY_TOKENS)

    def seconds() -> float:
        start = now()
        reply() if options.replies else train()
        return now() - start

    taken: tuple[list[float], list[float]] = [], []
    seconds(), seconds()  # memory is touched for the first time
    for _ in range(options.rounds):
        for busy, times in enumerate(taken):
            with busy_cores(busy * options.busy):
                times += seconds(), seconds()
    free, shared = map(median, taken)
    unit = "tokens/s" if options.replies else "examples/s"
    amount = len(rows) * (REPLY_TOKENS if options.replies else 1)
    report = (
        f"{amount / free:.2f} {unit} alone, {amount / shared:.2f} beside "
        f"{options.busy} busy programs: {free / shared:.0%} (rounds: "
        + ", ".join(f"{a / b:.0%}" for a, b in zip(*taken, strict=True))
        + f"). {describe_machine(dtype)}.\n"
    )
    print(report)
    if options.markdown:
        options.markdown.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
