"""What it brings to train roles together, on one base, against one after another.

    python benchmarks/many.py --steps 10 --batch-sizes 1 4 16

The included model learns the two sample roles, in float32 and in processes with one thread. Speed
is that of the steps; seconds are those of the whole command, in which a base is loaded once or
twice. Other programs on the machine change both, so the two ways take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from safetensors.torch import load_file

ROLES = {"brack": "lighthouse", "keeper": "teahouse-zh"}


class Measured(NamedTuple):
    """What training took: seconds, those of them in steps, and bytes of memory at the most."""

    seconds: float
    in_steps: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| rows a step | roles | examples/s | times as fast | seconds in all | GB | difference |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for size in options.batch_sizes:
        with tempfile.TemporaryDirectory() as place:
            compare(size, options.steps, options.repeats, Path(place))


def compare(size: int, steps: int, repeats: int, place: Path) -> None:
    """Print two rows of the table: one after another, and together."""
    apart, together = [], []
    for _ in range(repeats):
        each = [train([name], size, steps, place / "apart") for name in ROLES]
        seconds, in_steps, memory = zip(*each, strict=True)
        apart.append(Measured(sum(seconds), sum(in_steps), max(memory)))
        together.append(train(list(ROLES), size, steps, place / "together"))
    worst = max(
        difference(*(place / how / name for how in ("apart", "together"))) for name in ROLES
    )
    examples = steps * size * len(ROLES)
    speeds = [median(examples / m.in_steps for m in way) for way in (apart, together)]
    for name, way, speed in zip(("apart", "together"), (apart, together), speeds, strict=True):
        cells = [
            *(str(size), name, f"{speed:.2f}", f"{speed / speeds[0]:.2f}"),
            f"{median(m.seconds for m in way):.0f}",
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
    start = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    told = json.loads(done.stdout)
    results = list(told.values()) if len(files) > 1 else [told]
    lines = (place / names[0] / "metrics.jsonl").read_text().splitlines()
    memory = max(json.loads(line).get("memory", 0) for line in lines)
    return Measured(seconds, sum(result["seconds"] for result in results), memory)


def difference(one: Path, other: Path) -> float:
    """The largest difference of a weight of two adapters."""
    file = Path("adapter", "adapter_model.safetensors")
    first, second = (load_file(run / file) for run in (one, other))
    return max((first[name] - second[name]).abs().max().item() for name in first)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
