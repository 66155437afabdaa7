"""How training speed changes with row length, a shared prefix, and the model; fast against plain.

    python benchmarks/scaling.py [--base smollm2-135m ...] [--rounds 3]
        [--precision auto] [--kernels native] [--markdown FILE] [--plot FILE]

Both paths take the same step in turns, in one process; the table gives medians. Rows are random
tokens, the second half of each supervised. How speed depends on the number of rows is the
tokenizer's business alone: see `tokenize_rows.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
from machine import DEVICE, add_options, describe_machine, set_kernels

from offbook.engine.engine import Engine
from offbook.engine.memory import prepare_allocator
from offbook.models.adapter import attach_adapter
from offbook.models.base import resolve_base
from offbook.models.load import choose_precision, load_base
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import IGNORED, Example
from offbook.training.plan import MOST_TOKENS

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
PREFIXES = (0, 25, 50, 100, 200, 400)
STEP_TOKENS = 2048  # about; of 1 to 16 rows
HEADER = """\
| base | tokens a row | shared prefix | rows | fast, tokens/s | plain, tokens/s | fast is faster |
|---|--:|--:|--:|--:|--:|--:|
"""

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--base", nargs="+", default=["smollm2-135m"])
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
parser.add_argument("--prefixes", type=int, nargs="*", default=PREFIXES)
add_options(parser)
parser.add_argument("--markdown", type=Path)
parser.add_argument("--plot", type=Path)
arguments = parser.parse_args()
set_kernels(arguments.kernels)
dtype = choose_precision(arguments.precision, DEVICE)


def rows_of(length: int, prefix: int, count: int) -> list[Example]:
    """Random rows of about a length, after a prefix they share."""
    random = np.random.default_rng(0)
    shared = random.integers(1000, 40000, prefix)
    rows = []
    for k in range(count):
        own = length - (length * k) // (8 * count)  # real rows differ; these by up to an eighth
        ids = np.concatenate([shared, random.integers(1000, 40000, own)]).astype(np.int32)
        labels = np.where(np.arange(len(ids)) < prefix + own // 2, IGNORED, ids).astype(np.int32)
        rows.append(Example(ids, labels))
    return rows


def seconds(engine: Engine, rows: list[Example]) -> float:
    """One step's time; the first of a kind warms up."""
    start = time.perf_counter()
    engine.accumulate(engine.make_step(rows, MOST_TOKENS.on(DEVICE), DEVICE), [0])
    engine.model.zero_grad()
    return time.perf_counter() - start


prepare_allocator(DEVICE)
lines, points = [], []
for base in arguments.base:
    folder = resolve_base(base)
    lora = LoraSettings(lora_dropout=0.1)
    fast = Engine(attach_adapter(load_base(folder, dtype, DEVICE), lora, 0, base))
    plain = Engine(fast.model, fast=False)
    cases = [(n, 0) for n in arguments.lengths] + [(100, p) for p in arguments.prefixes if p]
    for length, prefix in cases:
        count = max(1, min(16, STEP_TOKENS // (length + prefix)))
        rows = rows_of(length, prefix, 16 if prefix else count)
        tokens = sum(map(len, rows))
        times: dict[str, list[float]] = {"fast": [], "plain": []}
        for round_ in range(arguments.rounds + 1):
            times["fast"].append(seconds(fast, rows))
            with fast.plain():
                times["plain"].append(seconds(plain, rows))
            if round_ == 0:
                times = {"fast": [], "plain": []}
        quick, slow = median(times["fast"]), median(times["plain"])
        ratio = median(b / a for a, b in zip(times["fast"], times["plain"], strict=True))
        name = Path(base).name
        lines.append(
            f"| {name} | {length} | {prefix} | {len(rows)} | {tokens / quick:,.0f} "
            f"| {tokens / slow:,.0f} | {ratio:.1f}x |"
        )
        points.append((name, length, prefix, ratio))
        print(lines[-1], flush=True)
table = HEADER + "\n".join(lines) + f"\n\n{describe_machine(dtype)}.\n"
print(table)
if arguments.markdown:
    arguments.markdown.write_text(table, encoding="utf-8")
if arguments.plot:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, column, label in (
        (axes[0], 1, "tokens a row, no shared prefix"),
        (axes[1], 2, "tokens of shared prefix, 100 more a row"),
    ):
        for name in dict.fromkeys(point[0] for point in points):
            chosen = [p for p in points if p[0] == name and (p[2] == 0) == (column == 1)]
            axis.plot([p[column] for p in chosen], [p[3] for p in chosen], "o-", label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log", base=2)
    axes[0].set_ylabel("times as fast as the plain path")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.savefig(arguments.plot)
