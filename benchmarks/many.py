"""What it brings to train roles together, on one base, against one after another.

    python benchmarks/many.py --batch-sizes 1 2 4 8 16 --rounds 5
    python benchmarks/many.py --commands 20

The included model learns the two sample roles, in float32 and on one thread. The first table is of
steps: the gradients of both roles, in a pass for each and in one pass, by turns, in processor
seconds, which other programs on the machine change least. The second, with `--commands STEPS`, is
of whole commands, in which a base is loaded once or twice.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from machine import describe_machine
from safetensors.torch import load_file

from offbook.engine.together import AdapterStep, accumulate_together
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.training.inputs import gather
from offbook.training.setup import LoadedRun, load
from offbook.training.shared import SharedBase

ROLES = {"brack": "lighthouse", "keeper": "teahouse-zh"}


class Measured(NamedTuple):
    """What training took: seconds, those in steps, and bytes of memory at the most."""

    seconds: float
    processor: float
    in_steps: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", type=int, metavar="STEPS")
    options = parser.parse_args()
    if options.commands:
        print(
            "| rows a step | roles | examples/s | seconds | processor seconds | GB | difference |"
        )
        print("|--:|---|--:|--:|--:|--:|--:|")
        for size in options.batch_sizes:
            with tempfile.TemporaryDirectory() as place:
                compare(size, options.commands, options.rounds, Path(place))
        return
    torch.set_num_threads(1)
    shared = SharedBase()
    runs = [prepare_with(shared, rows) for rows in ROLES.values()]
    print("| rows a step | tokens | examples/s apart | together | times as fast | difference |")
    print("|--:|--:|--:|--:|--:|--:|")
    for size in options.batch_sizes:
        compare_steps(runs, size, options.rounds)
    print(f"\n{describe_machine(torch.float32)}.")


def prepare_with(shared: SharedBase, rows: str) -> LoadedRun:
    """A run on these rows, on the shared base."""
    settings = [f"data.train={rows}", "model.precision=float32", "data.validation=0"]
    config = Config.load(None, [*settings, "lora.lora_dropout=0.05"])
    return load(gather(config, Monitor(), shared=shared), Monitor(), shared)


def compare_steps(runs: list[LoadedRun], size: int, rounds: int) -> None:
    """Print a row of the table: the gradients of a step of each role, apart and together."""
    shares = []
    for k, run in enumerate(runs):
        step = run.engine.make_step(list(run.inputs.training)[:size], 4096, run.inputs.device)
        shares.append(AdapterStep(run.engine, step, [k, 0]))
    apart, together = [], []
    worst = 0.0
    for _ in range(rounds):
        start = time.process_time()
        for share in shares:
            share.engine.accumulate(share.step, share.seed)
        apart.append(time.process_time() - start)
        expected = take_gradients(runs)
        start = time.process_time()
        accumulate_together(shares, lambda: False)
        together.append(time.process_time() - start)
        worst = max(worst, (take_gradients(runs) - expected).abs().max().item())
    speeds = [size * len(runs) / median(times) for times in (apart, together)]
    ratio = median(a / t for a, t in zip(apart, together, strict=True))
    tokens = sum(share.step.tokens for share in shares)
    cells = size, tokens, *(f"{speed:.2f}" for speed in speeds), f"{ratio:.2f}", f"{worst:.1g}"
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def take_gradients(runs: list[LoadedRun]) -> torch.Tensor:
    """The gradients of all adapters, which are removed."""
    weights = [p for run in runs for p in run.trained_parameters() if p.grad is not None]
    gradients = torch.cat([p.grad.flatten() for p in weights])
    for p in weights:
        p.grad = None
    return gradients


def compare(size: int, steps: int, repeats: int, place: Path) -> None:
    """Print two rows of the table: one after another, and together."""
    apart, together = [], []
    for _ in range(repeats):
        each = [train([name], size, steps, place / "apart") for name in ROLES]
        *times, memory = zip(*each, strict=True)
        apart.append(Measured(*map(sum, times), max(memory)))
        together.append(train(list(ROLES), size, steps, place / "together"))
    worst = max(
        difference(*(place / how / name for how in ("apart", "together"))) for name in ROLES
    )
    examples = steps * size * len(ROLES)
    for name, way in (("apart", apart), ("together", together)):
        cells = [
            *(str(size), name, f"{median(examples / m.in_steps for m in way):.2f}"),
            f"{median(m.seconds for m in way):.0f}",
            f"{median(m.processor for m in way):.0f}",
            f"{max(m.memory for m in way) / 1e9:.2f}",
            f"{worst:.1g}" if way is together else "",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def train(names: list[str], size: int, steps: int, place: Path) -> Measured:
    """Train roles in one process."""
    place.mkdir(exist_ok=True)
    files = []
    for name in names:
        files.append(place / f"{name}.yaml")
        settings = {"data": {"train": ROLES[name]}, "output_dir": str(place / name)}
        files[-1].write_text(json.dumps(settings))
    command = [
        *(sys.executable, "-m", "offbook", "train", *map(str, files), "--no-eval", "--json"),
        *("--overwrite", "model.precision=float32", "data.validation=0", "lora.lora_dropout=0.05"),
        *(f"train.batch_size={size}", f"train.max_steps={steps}", "train.logging_steps=1"),
    ]
    command += ["--many"] * (len(files) > 1)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = json.loads(done.stdout)
    results = list(told.values()) if len(files) > 1 else [told]
    lines = (place / names[0] / "metrics.jsonl").read_text().splitlines()
    memory = max(json.loads(line).get("memory", 0) for line in lines)
    in_steps = sum(result["seconds"] for result in results)
    return Measured(seconds, processor, in_steps, memory)


def difference(one: Path, other: Path) -> float:
    """The largest difference of a weight of two adapters."""
    file = Path("adapter", "adapter_model.safetensors")
    first, second = (load_file(run / file) for run in (one, other))
    return max((first[name] - second[name]).abs().max().item() for name in first)


if __name__ == "__main__":
    main()
